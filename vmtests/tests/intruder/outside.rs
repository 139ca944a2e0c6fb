//! What is there to be reached: files, sockets and a process that anybody on the machine may use.

use std::{
    fs::{self, Permissions},
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    path::PathBuf,
    process,
};

/// How an address begins: `AF_INET` and `AF_UNIX`, in two bytes.
const INET: [u8; 2] = [2, 0];
const UNIX: [u8; 2] = [1, 0];

/// See the head of this file. All of it is open to every user, so that what refuses is not its permissions.
#[derive(Debug)]
pub(crate) struct Outside {
    dir: tempfile::TempDir,
    tcp: TcpListener,
    udp: UdpSocket,
    _named: UnixListener,
    _abstract: UnixListener,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("socket");
        let named = UnixListener::bind(&socket).expect("it is new");
        for path in [dir.path(), &socket] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).expect("it is ours");
        }
        let address = SocketAddr::from_abstract_name(dir.path().as_os_str().as_bytes()).expect("it is short");
        let outside = Self {
            dir,
            tcp: TcpListener::bind("127.0.0.1:0").expect("there is a port"),
            udp: UdpSocket::bind("127.0.0.1:0").expect("there is a port"),
            _named: named,
            _abstract: UnixListener::bind_addr(&address).expect("it is new"),
        };
        outside.renew();
        outside
    }

    /// Takes away what an attempt has made, and brings back what it took away.
    pub(crate) fn renew(&self) {
        for made in ["made", "renamed"] {
            let path = self.dir.path().join(made);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
        let file = self.dir.path().join("file");
        fs::write(&file, "text").expect("it is ours");
        fs::set_permissions(file, Permissions::from_mode(0o666)).expect("it is ours");
    }

    /// The path of something in its directory: `file` and `socket` are there, `made` and `renamed` are not.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The process that listens.
    pub(crate) fn process(&self) -> u32 {
        process::id()
    }

    /// The address of a TCP port, as the kernel has it.
    pub(crate) fn tcp(&self) -> Vec<u8> {
        loopback(self.tcp.local_addr().expect("it is bound").port())
    }

    /// The address of a UDP port.
    pub(crate) fn udp(&self) -> Vec<u8> {
        loopback(self.udp.local_addr().expect("it is bound").port())
    }

    /// The address of a socket that has a name in a directory.
    pub(crate) fn named(&self, name: &str) -> Vec<u8> {
        local(format!("{}\0", self.path(name).display()).as_bytes())
    }

    /// The address of a socket that has a name of its own.
    pub(crate) fn abstract_socket(&self) -> Vec<u8> {
        local(&[&[0], self.dir.path().as_os_str().as_bytes()].concat())
    }
}

/// The address of a port of 127.0.0.1. Port 0: any.
pub(crate) fn loopback(port: u16) -> Vec<u8> {
    [&INET[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

fn local(name: &[u8]) -> Vec<u8> {
    [&UNIX[..], name].concat()
}
