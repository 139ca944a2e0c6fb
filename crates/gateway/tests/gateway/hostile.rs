//! What no honest guest sends: each frame is counted under its name, nothing answers it that should not, and what is honest passes
//! beside it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use exec_sandbox_gateway::{
    config::Limits,
    link::{GATEWAY_MAC, GUEST, GUEST_MAC, Malformed},
    policy::Refusal,
};
use smoltcp::{
    phy::ChecksumCapabilities,
    socket::tcp::State,
    wire::{IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

use super::{
    gate,
    guest::{frame, packet, udp},
    netsim::{Host, Link, Netsim, SERVER},
};

fn segment(guest_port: u16, to: SocketAddrV4, control: TcpControl, ack: Option<i32>) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: guest_port,
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(1000),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: b"",
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut bytes),
        &GUEST.into(),
        &(*to.ip()).into(),
        &ChecksumCapabilities::default(),
    );
    packet(GUEST, *to.ip(), IpProtocol::Tcp, &bytes)
}

fn changed(packet: &[u8], change: impl FnOnce(&mut Ipv4Packet<&mut [u8]>)) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let mut view = Ipv4Packet::new_unchecked(&mut bytes[..]);
    change(&mut view);
    view.fill_checksum();
    bytes
}

#[test]
fn damaged_and_foreign_frames_are_counted_and_answered_by_nobody() {
    let mut sim = Netsim::new(gate::open());
    let to = SocketAddrV4::new(SERVER, 7);
    let good = udp(1000, to, b"hello");
    let mut flipped = good.clone();
    *flipped.last_mut().expect("it has bytes") ^= 1;
    let foreign = packet(Ipv4Addr::new(192, 168, 127, 77), SERVER, IpProtocol::Udp, &good[20..]);
    let frames = [
        (frame(&good[..good.len() - 1]), Malformed::Truncated),
        (vec![0; 5], Malformed::Truncated),
        (frame(&flipped), Malformed::BadChecksum),
        (frame(&foreign), Malformed::ForeignSource),
        (frame(&changed(&good, |packet| packet.set_hop_limit(0))), Malformed::Expired),
        ([&GATEWAY_MAC[..], &[2, 0, 0, 0, 0, 5], &[8, 0], &good].concat(), Malformed::ForeignMac),
    ];
    for (bytes, why) in &frames {
        let before = sim.engine.counters().malformed;
        sim.inject(bytes);
        let after = sim.engine.counters().malformed;
        let counted: Vec<&str> = Malformed::ALL
            .iter()
            .zip(before.iter().zip(&after))
            .filter(|(_, (before, after))| before != after)
            .map(|(why, _)| why.name())
            .collect();
        assert_eq!(counted, [why.name()]);
    }
    assert_eq!((sim.frames_out().len(), sim.world.udp.len()), (0, 0));
    sim.inject(&frame(&good));
    assert_eq!(sim.world.udp.len(), 1, "the honest one passes");
}

#[test]
fn what_is_not_carried_is_refused_by_name() {
    let mut sim = Netsim::new(gate::open());
    let good = udp(1000, SocketAddrV4::new(SERVER, 7), b"hello");
    sim.inject(&frame(&changed(&good, |packet| packet.set_more_frags(true))));
    sim.inject(&frame(&changed(&good, |packet| packet.set_frag_offset(8))));
    sim.inject(&frame(&packet(GUEST, SERVER, IpProtocol::Unknown(47), b"hello")));
    sim.inject(&[&[0x33, 0x33, 0, 0, 0, 2][..], &GUEST_MAC, &[0x86, 0xdd], &[0x60; 60]].concat());
    assert_eq!((sim.refused(Refusal::Fragment), sim.refused(Refusal::ProtocolRefused)), (2, 1));
    assert_eq!((sim.refused(Refusal::Ipv6Refused), sim.world.udp.len()), (1, 0));
}

#[test]
fn a_flood_of_syns_takes_its_places_and_no_more_and_a_repeated_one_takes_none() {
    let limits = Limits { tcp_flows: 64, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    sim.world.is_silent = true;
    let server = sim.server(80, Host::default);
    for _ in 0..3 {
        for port in 1000..1064 {
            sim.inject(&frame(&segment(port, server, TcpControl::Syn, None)));
        }
    }
    assert_eq!((sim.world.dials, sim.engine.flows(), sim.frames_out().len()), (64, (64, 0), 0));
    for port in 2000..2500 {
        sim.inject(&frame(&segment(port, server, TcpControl::Syn, None)));
        assert_eq!(sim.frames_out().len(), 1, "each is reset");
    }
    assert_eq!((sim.world.dials, sim.refused(Refusal::FlowLimit)), (64, 500));
    // Nobody answers for so long that all are given up; then there is room for an honest one.
    sim.until("all are given up", |sim| sim.engine.flows().0 == 0);
    assert_eq!(sim.engine.counters().unreachable, 64);
    sim.world.is_silent = false;
    let stream = sim.guest.connect(server);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
}

#[test]
fn connections_that_are_opened_one_after_another_are_limited_in_a_time() {
    let mut sim = Netsim::new(gate::open());
    let open = |sim: &mut Netsim, count: u16| {
        for port in 1000..1000 + count {
            // Nobody is there, so that each is over at once.
            sim.inject(&frame(&segment(port, SocketAddrV4::new(SERVER, 80), TcpControl::Syn, None)));
            sim.step();
        }
        (sim.world.dials, sim.refused(Refusal::FlowRate), sim.engine.flows())
    };
    assert_eq!(open(&mut sim, 5000), (4096, 904, (0, 0)));
    sim.now += Duration::from_secs(1);
    assert_eq!(open(&mut sim, 300), (4196, 1104, (0, 0)));
}

#[test]
fn syns_that_are_answered_and_never_acknowledged_are_given_up() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    // The guest's stack does not know of it, and resets what answers; so the answers are kept from it.
    sim.inject(&frame(&segment(1000, server, TcpControl::Syn, None)));
    let end = sim.now + Duration::from_secs(60);
    while sim.engine.flows().0 > 0 && sim.now < end {
        sim.step_without_guest();
    }
    assert_eq!((sim.engine.flows(), sim.engine.counters().timed_out), ((0, 0), 1));
    assert_eq!(sim.world.closed.len(), 1);
}

#[test]
fn segments_of_no_connection_are_reset_and_never_dialed() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    for (control, ack) in [(TcpControl::None, Some(5)), (TcpControl::Fin, Some(5)), (TcpControl::Syn, Some(5))] {
        sim.inject(&frame(&segment(1000, server, control, ack)));
        assert_eq!(sim.frames_out().len(), 1, "{control:?}");
    }
    sim.inject(&frame(&segment(1000, server, TcpControl::Rst, Some(5))));
    assert!(sim.frames_out().is_empty(), "a reset is not answered");
    assert_eq!((sim.world.dials, sim.engine.counters().strays), (0, 4));
}
