//! Datagrams: UDP both ways, exposed ports, echo, ARP, and questions.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use exec_sandbox_gateway::{
    config::Limits,
    engine::UdpFlow,
    link::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC},
    policy::Refusal,
};
use smoltcp::wire::{Icmpv4Packet, IpProtocol, Ipv4Packet, UdpPacket};

use super::{
    gate,
    guest::{frame, packet, udp},
    netsim::{Link, Netsim, SERVER},
};

/// What of the packets for the guest are datagrams: from where, to which port, with what.
fn datagrams(sim: &mut Netsim) -> Vec<(SocketAddrV4, u16, Vec<u8>)> {
    let frames = sim.frames_out();
    let read = |frame: &Vec<u8>| {
        let packet = Ipv4Packet::new_checked(&frame[14..]).expect("it is a packet");
        assert!(packet.verify_checksum() && packet.dst_addr() == GUEST);
        let datagram =
            UdpPacket::new_checked(packet.payload()).ok().filter(|_| packet.next_header() == IpProtocol::Udp)?;
        assert!(datagram.verify_checksum(&packet.src_addr().into(), &GUEST.into()));
        let from = SocketAddrV4::new(packet.src_addr(), datagram.src_port());
        Some((from, datagram.dst_port(), datagram.payload().to_vec()))
    };
    frames.iter().filter_map(read).collect()
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    let mut sim = Netsim::new(gate::open());
    let to = SocketAddrV4::new(SERVER, 7);
    sim.inject(&frame(&udp(1000, to, b"one")));
    sim.inject(&frame(&udp(1000, to, b"two")));
    sim.inject(&frame(&udp(1001, to, b"other")));
    assert_eq!(sim.world.udp[&0], (to, vec![b"one".to_vec(), b"two".to_vec()]));
    assert_eq!(sim.world.udp[&1], (to, vec![b"other".to_vec()]));
    sim.engine.arrived(UdpFlow(0), b"echo", &mut sim.world, sim.now);
    assert_eq!(datagrams(&mut sim), [(to, 1000, b"echo".to_vec())]);
}

#[test]
fn a_flow_of_datagrams_ends_when_it_is_silent() {
    let mut sim = Netsim::new(gate::open());
    let to = SocketAddrV4::new(SERVER, 7);
    sim.inject(&frame(&udp(1000, to, b"one")));
    sim.pass(Duration::from_secs(59));
    sim.engine.arrived(UdpFlow(0), b"echo", &mut sim.world, sim.now);
    sim.pass(Duration::from_secs(59));
    assert_eq!((sim.engine.flows(), sim.world.udp_closed), ((0, 1), 0));
    sim.pass(Duration::from_secs(2));
    assert_eq!((sim.engine.flows(), sim.world.udp_closed), ((0, 0), 1));
    assert_eq!(sim.engine.next_deadline(), None, "nothing is left to wait for");
}

#[test]
fn datagrams_that_are_refused_are_told_to_the_program_and_counted() {
    let limits = Limits { udp_flows: 2, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    let private = udp(1000, SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 7), b"x");
    sim.inject(&frame(&private));
    let frames = sim.frames_out();
    let told = Ipv4Packet::new_checked(&frames[0][14..]).expect("it is a packet");
    assert_eq!((told.src_addr(), told.next_header()), (Ipv4Addr::new(10, 0, 0, 1), IpProtocol::Icmp));
    assert!(told.payload().ends_with(&private[..28]) && told.payload().starts_with(&[3, 3]));
    assert!(Icmpv4Packet::new_checked(told.payload()).expect("it is ICMP").verify_checksum());
    for port in 0..3 {
        sim.inject(&frame(&udp(1000 + port, SocketAddrV4::new(SERVER, 7), b"x")));
    }
    assert_eq!((sim.refused(Refusal::PrivateAddress), sim.refused(Refusal::FlowLimit)), (1, 1));
    assert_eq!((sim.engine.flows(), sim.world.udp.len()), ((0, 2), 2));
}

#[test]
fn without_a_free_place_the_flow_that_is_silent_for_longest_ends_and_none_that_is_in_use() {
    let limits = Limits { udp_flows: 2, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    let to = SocketAddrV4::new(SERVER, 7);
    sim.inject(&frame(&udp(1000, to, b"one")));
    sim.inject(&frame(&udp(1001, to, b"a question")));
    sim.pass(Duration::from_millis(900));
    sim.inject(&frame(&udp(1000, to, b"two")));
    sim.inject(&frame(&udp(1002, to, b"too early")));
    assert_eq!((sim.refused(Refusal::FlowLimit), sim.world.udp_closed), (1, 0));
    sim.pass(Duration::from_millis(100));
    sim.inject(&frame(&udp(1002, to, b"another")));
    assert_eq!((sim.refused(Refusal::FlowLimit), sim.world.udp_closed, sim.engine.flows()), (1, 1, (0, 2)));
    assert_eq!(sim.world.udp[&0].1, [b"one", b"two"], "it goes on");
    assert_eq!(sim.world.udp[&1].1, [b"another"]);
    let _ = sim.frames_out();
    sim.engine.arrived(UdpFlow(1), b"an answer", &mut sim.world, sim.now);
    assert_eq!(datagrams(&mut sim), [(to, 1002, b"an answer".to_vec())]);
    // What comes from outside takes a place in the same way.
    sim.pass(Duration::from_secs(1));
    sim.engine.exposed(53, "127.0.0.1:4000".parse().expect("it is one"), b"hello", &mut sim.world, sim.now);
    assert_eq!((sim.world.udp_closed, sim.world.udp.keys().collect::<Vec<_>>()), (2, vec![&1]));
}

#[test]
fn a_datagram_that_nobody_takes_is_told_to_the_program_and_its_place_is_free() {
    let mut sim = Netsim::new(gate::open());
    let to = SocketAddrV4::new(SERVER, 7);
    let sent = udp(1000, to, b"hello");
    for _ in 0..2 {
        sim.inject(&frame(&sent));
        sim.engine.udp_refused(UdpFlow(0), &mut sim.world, sim.now);
        let frames = sim.frames_out();
        let told = Ipv4Packet::new_checked(&frames[0][14..]).expect("it is a packet");
        assert_eq!((told.src_addr(), told.next_header(), frames.len()), (SERVER, IpProtocol::Icmp, 1));
        let message = Icmpv4Packet::new_checked(told.payload()).expect("it is ICMP");
        assert!(message.verify_checksum() && told.payload().starts_with(&[3, 3]));
        // Addresses and ports, by which a kernel finds the socket.
        assert_eq!((&told.payload()[20..28], &told.payload()[28..32]), (&sent[12..20], &sent[20..24]));
    }
    assert_eq!((sim.engine.flows(), sim.world.udp_closed, sim.engine.counters().unreachable), ((0, 0), 2, 2));
    // One that is over has nobody to tell.
    sim.engine.udp_refused(UdpFlow(0), &mut sim.world, sim.now);
    assert_eq!((sim.frames_out().len(), sim.engine.counters().unreachable), (0, 2));
}

#[test]
fn a_datagram_for_an_exposed_port_reaches_the_guest_and_the_answer_its_sender() {
    let mut sim = Netsim::new(gate::inbound_only());
    let peers: [SocketAddr; 2] =
        ["127.0.0.1:4000".parse().expect("it is one"), "127.0.0.1:4001".parse().expect("it is one")];
    for peer in peers {
        sim.engine.exposed(53, peer, b"hello", &mut sim.world, sim.now);
    }
    let arrived = datagrams(&mut sim);
    let [(first, 53, _), (second, 53, _)] = arrived[..] else { panic!("{arrived:?}") };
    assert!(*first.ip() == GATEWAY && first != second, "{first} {second}");
    sim.inject(&frame(&udp(53, second, b"to the second")));
    assert_eq!(sim.world.answers, [(53, peers[1], b"to the second".to_vec())]);
    sim.inject(&frame(&udp(53, SocketAddrV4::new(SERVER, 7), b"to anybody")));
    assert_eq!((sim.refused(Refusal::InboundOnly), sim.world.udp.len()), (1, 0));
}

#[test]
fn that_nobody_in_the_guest_takes_a_datagram_is_no_refusal() {
    let mut sim = Netsim::new(gate::inbound_only());
    let peer = "127.0.0.1:4000".parse().expect("it is one");
    sim.engine.exposed(53, peer, b"hello", &mut sim.world, sim.now);
    let sent = sim.frames_out().remove(0);
    let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0], &sent[14..]].concat();
    Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
    sim.inject(&frame(&packet(GUEST, GATEWAY, IpProtocol::Icmp, &message)));
    let counters = sim.engine.counters();
    assert_eq!((counters.refused(), counters.strays, sim.frames_out().len()), (0, 1, 0));
}

#[test]
fn the_gateway_answers_echo_and_arp_for_itself_alone() {
    let mut sim = Netsim::new(gate::open());
    let echo = |to| {
        let mut message = b"\x08\0\0\0\0\x01\0\x02ping".to_vec();
        Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
        frame(&packet(GUEST, to, IpProtocol::Icmp, &message))
    };
    sim.inject(&echo(GATEWAY));
    let frames = sim.frames_out();
    let answer = Ipv4Packet::new_checked(&frames[0][14..]).expect("it is a packet");
    assert_eq!((answer.src_addr(), &answer.payload()[4..]), (GATEWAY, &b"\0\x01\0\x02ping"[..]));
    assert_eq!((answer.payload()[0], frames.len()), (0, 1));
    sim.inject(&echo(SERVER));
    assert_eq!((sim.frames_out().len(), sim.refused(Refusal::ProtocolRefused)), (0, 1));

    let who_is = |address: Ipv4Addr| {
        let question =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST_MAC, &GUEST.octets(), &[0; 6], &address.octets()].concat();
        [&[0xff; 6][..], &GUEST_MAC, &[8, 6], &question].concat()
    };
    sim.inject(&who_is(GATEWAY));
    let frames = sim.frames_out();
    assert_eq!((&frames[0][22..28], &frames[0][28..32], frames.len()), (&GATEWAY_MAC[..], &GATEWAY.octets()[..], 1));
    sim.inject(&who_is(SERVER));
    assert!(sim.frames_out().is_empty());
}
