//! A network interface of the kernel, set by its own requests.
#![expect(unsafe_code, reason = "settings of an interface are ioctls on C structs")]

use std::{mem, net::Ipv4Addr};

use rustix::{
    fd::{AsRawFd as _, OwnedFd},
    io,
    net::{AddressFamily, SocketFlags, SocketType},
};

/// Sets a neighbour; and its flags: it is complete, and it stays. The C library's bindings lack all three.
const SIOCSARP: libc::Ioctl = 0x8955;
const ATF_COM: libc::c_int = 0x02;
const ATF_PERM: libc::c_int = 0x04;

/// An interface, by its name.
#[derive(Debug)]
pub(crate) struct Interface {
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: OwnedFd,
}

impl Interface {
    /// The interface called `name`, which is not looked at yet.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut field = [0; libc::IFNAMSIZ];
        // The last byte stays the NUL that ends it.
        if name.len() >= field.len() {
            return Err(io::Errno::NAMETOOLONG);
        }
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        Ok(Self { name: field, socket })
    }

    /// Brings it up.
    pub(crate) fn up(&self) -> io::Result<()> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the flags are 16 bits wide in this struct, and both lie below"
        )]
        let ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.request(libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags })
    }

    /// Takes it down, and with it the routes and neighbours that are reached by it.
    pub(crate) fn down(&self) -> io::Result<()> {
        self.request(libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: 0 })
    }

    /// Sets the largest packet.
    pub(crate) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.request(libc::SIOCSIFMTU, libc::__c_anonymous_ifr_ifru { ifru_mtu: mtu.into() })
    }

    /// Sets its address and the part of it that is the network's.
    pub(crate) fn set_address(&self, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        self.request(libc::SIOCSIFADDR, libc::__c_anonymous_ifr_ifru { ifru_addr: socket_address(address) })?;
        self.request(libc::SIOCSIFNETMASK, libc::__c_anonymous_ifr_ifru { ifru_netmask: socket_address(mask) })
    }

    /// Sends all that has no nearer way to `gateway`. That it is sent there already is an error: another route may come before that one.
    pub(crate) fn set_gateway(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: a route is numbers, addresses of families that are numbers, and a pointer that may be null; zeros are valid for all.
        let mut route: libc::rtentry = unsafe { mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads an rtentry, all of whose fields are set above, its device's name to none; the struct lives until the
        // call returns, and the descriptor is an open socket.
        told(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) })
    }

    /// Fixes the Ethernet address of `neighbour`, until the interface is taken down.
    pub(crate) fn set_neighbour(&self, neighbour: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        let mut sa_data = [0; 14];
        for (to, from) in sa_data.iter_mut().zip(mac) {
            *to = from.cast_signed();
        }
        let arp_ha = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data };
        let request = libc::arpreq {
            arp_pa: socket_address(neighbour),
            arp_ha,
            arp_flags: ATF_PERM | ATF_COM,
            arp_netmask: socket_address(Ipv4Addr::UNSPECIFIED),
            arp_dev: self.name,
        };
        // SAFETY: SIOCSARP reads an arpreq whose device's name ends in NUL; the struct lives until the call returns, and the descriptor
        // is an open socket.
        told(unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCSARP, &raw const request) })
    }

    fn request(&self, request: libc::Ioctl, value: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
        let request_body = libc::ifreq { ifr_name: self.name, ifr_ifru: value };
        // SAFETY: each of the requests above reads an ifreq whose name ends in NUL and the member of the union that its caller has set;
        // the struct lives until the call returns, and the descriptor is an open socket.
        told(unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw const request_body) })
    }
}

/// An address as the C interface has it: family, port, and four bytes of address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut sa_data = [0; 14];
    for (to, from) in sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "the family is 2")]
    let sa_family = libc::AF_INET as libc::sa_family_t;
    libc::sockaddr { sa_family, sa_data }
}

fn told(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert_eq!(Interface::open("sixteen-letters-").expect_err("it has no NUL"), io::Errno::NAMETOOLONG);
    }

    #[test]
    fn an_interface_that_there_is_not_is_an_error() {
        let nobody = Interface::open("none-such").expect("a socket can be had");
        assert_eq!(nobody.set_mtu(1500), Err(io::Errno::NODEV));
        assert_eq!(nobody.set_neighbour(Ipv4Addr::new(192, 168, 127, 1), [2, 0, 0, 0, 0, 1]), Err(io::Errno::NODEV));
    }

    #[test]
    fn an_address_stands_after_the_port() {
        let address = socket_address(Ipv4Addr::new(192, 168, 127, 2));
        assert_eq!(
            address.sa_data[..6].iter().map(|byte| byte.cast_unsigned()).collect::<Vec<_>>(),
            [0, 0, 192, 168, 127, 2]
        );
    }
}
