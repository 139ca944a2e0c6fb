//! Datagrams to somebody who is there and takes none: the guest hears of it as from any network, and a resolver is followed by the next.

use exec_sandbox_gateway::link::GATEWAY;
use smoltcp::wire::{Icmpv4Packet, Ipv4Packet};

use super::*;

#[test]
fn datagrams_to_a_port_that_is_closed_are_answered_with_icmp_each_time() {
    let server = UdpSocket::bind(loopback(0)).expect("there is a port");
    let at = loopback(server.local_addr().expect("it is bound").port());
    drop(server);
    let mut gateway = Gateway::start(|_| ());
    for time in 1..=3 {
        let sent = udp(1000, at, b"hello");
        gateway.send(&frame(&sent));
        gateway.until("it is told", |gateway| gateway.messages.len() == time);
        let (from, message) = &gateway.messages[time - 1];
        assert!(*from == *at.ip() && message.starts_with(&[3, 3]), "{from} {message:?}");
        assert!(Icmpv4Packet::new_checked(&message[..]).expect("it is ICMP").verify_checksum());
        let repeated = Ipv4Packet::new_unchecked(&message[8..]);
        let original = Ipv4Packet::new_checked(&sent[..]).expect("it is a packet");
        assert_eq!((repeated.src_addr(), repeated.dst_addr()), (original.src_addr(), original.dst_addr()));
        assert_eq!(repeated.next_header(), original.next_header());
        assert_eq!(message[28..32], sent[20..24], "the ports are those of the datagram");
    }
    assert_eq!(gateway.ask().unreachable, 3);
    // Somebody is there now.
    let server = UdpSocket::bind(at).expect("nobody took it meanwhile");
    gateway.send(&frame(&udp(1000, at, b"hello")));
    gateway.write();
    server.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    assert_eq!(server.recv(&mut [0; 100]).expect("it arrives"), 5);
    assert_eq!((gateway.ask().unreachable, gateway.messages.len()), (3, 3));
}

#[test]
fn a_resolver_whose_port_is_closed_costs_a_question_no_time() {
    let [gone, resolver] = [(); 2].map(|()| UdpSocket::bind(loopback(0)).expect("there is a port"));
    let resolvers = [&gone, &resolver].map(|socket| socket.local_addr().expect("it is bound")).to_vec();
    drop(gone);
    let mut gateway = Gateway::start(|config| config.resolvers = resolvers);
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    gateway.send(&frame(&udp(1000, SocketAddrV4::new(GATEWAY, 53), question)));
    gateway.write();
    // A resolver that is silent is waited for longer.
    resolver.set_read_timeout(Some(Duration::from_millis(1900))).expect("it is a socket");
    assert_eq!(resolver.recv(&mut [0; 100]).expect("it is asked"), question.len());
}
