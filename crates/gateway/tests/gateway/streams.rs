//! Streams: bytes both ways over every kind of link, ends, resets, back-pressure, limits.

use std::{collections::VecDeque, time::Duration};

use exec_sandbox_gateway::{config::Limits, engine::End, policy::Refusal};
use smoltcp::socket::tcp::State;

use super::{
    gate,
    netsim::{Host, Link, Netsim},
};

/// Bytes that tell where they belong.
fn pattern(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(step).collect()
}

const MUCH: usize = 1024 * 1024;

fn says_much() -> Host {
    Host { says: pattern(MUCH, 2).into(), ends: true, ..Host::default() }
}

fn both_ways(mtu: u16, link: Link) -> Netsim {
    // Not a wide flow: with one, losing 3 of 100, both ends were seen to lose their FIN and not to send it again until the idle limit.
    let mut sim = Netsim::with(gate::open(), Limits { wide_flows: 0, ..Limits::default() }, mtu, link);
    let server = sim.server(80, says_much);
    let stream = sim.guest.connect(server);
    let (up, mut sent, mut down) = (pattern(MUCH, 1), 0, Vec::new());
    sim.until("both directions are through", |sim| {
        sent += sim.guest.send(stream, &up[sent..]);
        if sent == up.len() {
            sim.guest.tcp(stream).close();
        }
        down.extend(sim.guest.take(stream));
        sim.world.closed.len() == 1
    });
    assert!(down == pattern(MUCH, 2), "{} bytes came down", down.len());
    let host = &sim.world.closed[0];
    assert!(host.heard == up, "{} bytes went up", host.heard.len());
    assert_eq!((host.is_shut, host.closed), (true, Some(End::Orderly)));
    assert_eq!(sim.engine.flows(), (0, 0));
    let counters = sim.engine.counters();
    assert_eq!((counters.bytes_from_guest, counters.bytes_to_guest), (MUCH as u64, MUCH as u64));
    sim
}

#[test]
fn a_megabyte_passes_both_ways_unchanged() {
    let sim = both_ways(65_520, Link::default());
    assert_eq!(sim.engine.counters().connections, 1);
    both_ways(1500, Link::default());
    both_ways(576, Link::default());
}

#[test]
fn a_link_that_loses_repeats_and_reorders_changes_no_byte() {
    both_ways(1500, Link { loses: 3, ..Link::default() });
    both_ways(1500, Link { repeats: 20, ..Link::default() });
    both_ways(1500, Link { reorders: 10, ..Link::default() });
    both_ways(65_520, Link { loses: 10, repeats: 10, reorders: 10 });
}

#[test]
fn either_side_may_end_first_and_the_other_still_speaks() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    let stream = sim.guest.connect(server);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
    sim.guest.send(stream, b"the last word");
    sim.guest.tcp(stream).close();
    sim.until("the server hears the end", |sim| sim.world.hosts[&0].is_shut);
    let host = sim.world.hosts.get_mut(&0).expect("it is open");
    assert_eq!(host.heard, b"the last word");
    (host.says, host.ends) = (VecDeque::from(*b"an answer"), true);
    let mut heard = Vec::new();
    sim.until("the guest hears the answer", |sim| {
        heard.extend(sim.guest.take(stream));
        sim.world.closed.len() == 1
    });
    assert_eq!((&heard[..], sim.world.closed[0].closed), (&b"an answer"[..], Some(End::Orderly)));

    // And the other way round.
    let server = sim.server(81, || Host { says: VecDeque::from(*b"first"), ends: true, ..Host::default() });
    let stream = sim.guest.connect(server);
    sim.until("the guest hears the end", |sim| {
        sim.guest.tcp(stream).recv_queue() == 5 && !sim.guest.tcp(stream).can_send()
            || sim.guest.state(stream) == State::CloseWait
    });
    assert_eq!(sim.guest.take(stream), b"first");
    sim.guest.send(stream, b"thanks");
    sim.guest.tcp(stream).close();
    sim.until("both are done", |sim| sim.world.closed.len() == 2);
    assert_eq!((&sim.world.closed[1].heard[..], sim.world.closed[1].closed), (&b"thanks"[..], Some(End::Orderly)));
    assert_eq!(sim.engine.flows(), (0, 0));
}

#[test]
fn a_reset_of_one_side_is_a_reset_of_the_other() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    let (ours, theirs) = (sim.guest.connect(server), sim.guest.connect(server));
    sim.until("both are connected", |sim| sim.world.hosts.len() == 2 && sim.guest.state(theirs) == State::Established);
    sim.guest.tcp(ours).abort();
    sim.until("the server sees a reset", |sim| sim.world.closed.len() == 1);
    assert_eq!(sim.world.closed[0].closed, Some(End::Reset));
    let (_, host) = sim.world.hosts.iter_mut().next().expect("one is open");
    host.is_broken = true;
    sim.until("the guest sees a reset", |sim| sim.guest.state(theirs) == State::Closed);
    sim.until("the flow is gone", |sim| sim.engine.flows() == (0, 0));
    assert_eq!(sim.world.closed.len(), 2);
}

#[test]
fn a_server_that_takes_nothing_stops_the_guest_and_nothing_is_held_beyond_the_buffers() {
    let limits = Limits { flow_buffer_bytes: 64 * 1024, wide_flows: 0, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    let server = sim.server(80, || Host { takes: Some(0), ..Host::default() });
    let stream = sim.guest.connect(server);
    let (up, mut sent) = (pattern(4 * MUCH, 3), 0);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
    for _ in 0..2000 {
        sent += sim.guest.send(stream, &up[sent..]);
        sim.step();
    }
    let held = sent - sim.guest.tcp(stream).send_queue();
    assert!(held <= 64 * 1024, "{held} bytes were taken and nobody had them");
    sim.world.hosts.get_mut(&0).expect("it is open").takes = None;
    sim.until("everything is through", |sim| {
        sent += sim.guest.send(stream, &up[sent..]);
        sim.world.hosts[&0].heard.len() == up.len()
    });
    assert!(sim.world.hosts[&0].heard == up);
}

#[test]
fn only_so_many_flows_are_wide_and_whoever_comes_after_one_of_them_is_wide_again() {
    const KIB: usize = 1024;
    let limits =
        Limits { flow_buffer_bytes: 64 * 1024, wide_flows: 1, wide_buffer_bytes: 256 * 1024, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    let server = sim.server(80, || Host { takes: Some(0), ..Host::default() });
    let up = pattern(MUCH, 3);
    let held = |sim: &mut Netsim| {
        let (stream, mut sent) = (sim.guest.connect(server), 0);
        sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
        for _ in 0..2000 {
            sent += sim.guest.send(stream, &up[sent..]);
            sim.step();
        }
        (stream, sent - sim.guest.tcp(stream).send_queue())
    };
    let (first, wide) = held(&mut sim);
    let (_, narrow) = held(&mut sim);
    assert!(wide > 64 * KIB && wide <= 256 * KIB && narrow <= 64 * KIB, "{wide}, {narrow}");
    sim.guest.tcp(first).abort();
    sim.until("it is gone", |sim| sim.engine.flows() == (1, 0));
    let (_, wide) = held(&mut sim);
    assert!(wide > 64 * KIB && wide <= 256 * KIB, "{wide}");
}

#[test]
fn a_guest_that_takes_nothing_stops_the_server() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, || Host { says: pattern(4 * MUCH, 2).into(), ..Host::default() });
    let stream = sim.guest.connect(server);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
    for _ in 0..2000 {
        sim.step();
    }
    let read = 4 * MUCH - sim.world.hosts[&0].says.len();
    // The guest's own buffer, and one of the gateway.
    assert!(read <= (512 + 512) * 1024, "{read} bytes were read ahead");
    let mut down = Vec::new();
    sim.until("everything is through", |sim| {
        down.extend(sim.guest.take(stream));
        down.len() == 4 * MUCH
    });
    assert!(down == pattern(4 * MUCH, 2));
}

#[test]
fn what_is_refused_is_reset_and_counted_and_nobody_is_dialed() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    let good = sim.guest.connect(server);
    let bad = sim.guest.connect(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 80));
    sim.until("the one is connected", |sim| sim.guest.state(good) == State::Established);
    sim.until("the other is reset", |sim| sim.guest.state(bad) == State::Closed);
    assert_eq!((sim.refused(Refusal::PrivateAddress), sim.world.dials), (1, 1));
}

#[test]
fn a_server_that_refuses_is_a_reset_and_no_refusal() {
    let mut sim = Netsim::new(gate::open());
    let stream = sim.guest.connect(std::net::SocketAddrV4::new(super::netsim::SERVER, 81));
    sim.until("it is reset", |sim| sim.guest.state(stream) == State::Closed);
    assert_eq!((sim.engine.counters().unreachable, sim.engine.counters().refused()), (1, 0));
    assert_eq!(sim.world.closed.len(), 1);
}

#[test]
fn while_a_dial_is_out_a_repeated_syn_opens_nothing_and_at_last_the_guest_is_told() {
    let mut sim = Netsim::new(gate::open());
    sim.world.is_silent = true;
    let server = sim.server(80, Host::default);
    let stream = sim.guest.connect(server);
    sim.pass(Duration::from_secs(15));
    assert_eq!((sim.world.dials, sim.engine.flows()), (1, (1, 0)));
    sim.until("the guest is told", |sim| sim.guest.state(stream) == State::Closed);
    assert_eq!((sim.engine.counters().unreachable, sim.engine.flows()), (1, (0, 0)));
    assert_eq!(sim.world.closed[0].closed, Some(End::Reset));
}

#[test]
fn flows_are_limited_and_a_place_is_free_again_when_one_ends() {
    let limits = Limits { tcp_flows: 8, ..Limits::default() };
    let mut sim = Netsim::with(gate::open(), limits, 1500, Link::default());
    let server = sim.server(80, Host::default);
    let streams: Vec<_> = (0..9).map(|_| sim.guest.connect(server)).collect();
    sim.until("eight are connected and one is refused", |sim| {
        let count = |state| streams.iter().filter(|stream| sim.guest.state(**stream) == state).count();
        (count(State::Established), count(State::Closed)) == (8, 1)
    });
    assert_eq!((sim.refused(Refusal::FlowLimit), sim.engine.flows(), sim.world.dials), (1, (8, 0), 8));
    let open = *streams.iter().find(|stream| sim.guest.state(**stream) == State::Established).expect("some are");
    sim.guest.tcp(open).abort();
    sim.until("a place is free", |sim| sim.engine.flows().0 == 7);
    let another = sim.guest.connect(server);
    sim.until("it is connected", |sim| sim.guest.state(another) == State::Established);
}

#[test]
fn a_flow_that_is_due_waits_for_room_and_not_for_the_clock() {
    let mut sim = Netsim::new(gate::open());
    sim.world.is_silent = true;
    let server = sim.server(80, Host::default);
    sim.guest.connect(server);
    sim.step();
    assert_eq!(sim.engine.flows(), (1, 0));
    while sim.engine.outgoing().has_room() {
        sim.engine.outgoing().add_frame(&[0; 1500]).expect("there is room");
    }
    sim.now += Duration::from_secs(60);
    sim.engine.expire(&mut sim.world, sim.now);
    sim.engine.serve(&mut sim.world, sim.now);
    assert_eq!((sim.engine.next_deadline(), sim.engine.flows()), (None, (1, 0)));
    sim.engine.outgoing().written(usize::MAX);
    assert!(sim.engine.next_deadline().is_some_and(|deadline| deadline <= sim.now));
    sim.engine.expire(&mut sim.world, sim.now);
    sim.engine.serve(&mut sim.world, sim.now);
    assert_eq!((sim.engine.next_deadline(), sim.engine.flows()), (None, (0, 0)));
}

#[test]
fn a_connection_that_moves_nothing_for_an_hour_is_given_up() {
    let mut sim = Netsim::new(gate::open());
    let server = sim.server(80, Host::default);
    let stream = sim.guest.connect(server);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
    sim.pass(Duration::from_secs(3500));
    assert_eq!(sim.guest.state(stream), State::Established);
    sim.until("it is given up", |sim| sim.guest.state(stream) == State::Closed);
    assert_eq!(sim.engine.counters().timed_out, 1);
}

#[test]
fn a_connection_from_outside_reaches_a_port_of_the_guest() {
    let mut sim = Netsim::new(gate::inbound_only());
    let server = sim.guest.listen(8080);
    let flow = sim.engine.accept(8080, &mut sim.world, sim.now).expect("there is a place");
    sim.world.hosts.insert(flow.0, Host { says: VecDeque::from(*b"a request"), ends: true, ..Host::default() });
    sim.until("the guest has the request", |sim| sim.guest.tcp(server).recv_queue() == 9);
    assert_eq!(sim.guest.take(server), b"a request");
    sim.guest.send(server, b"an answer");
    sim.guest.tcp(server).close();
    sim.until("it is over", |sim| sim.world.closed.len() == 1);
    assert_eq!((&sim.world.closed[0].heard[..], sim.world.closed[0].closed), (&b"an answer"[..], Some(End::Orderly)));
    // Nobody listens there.
    let flow = sim.engine.accept(8081, &mut sim.world, sim.now).expect("there is a place");
    sim.world.hosts.insert(flow.0, Host::default());
    sim.until("it is reset", |sim| sim.world.closed.len() == 2);
    assert_eq!(sim.world.closed[1].closed, Some(End::Reset));
    // The guest itself opens nothing.
    let server = sim.server(80, Host::default);
    let stream = sim.guest.connect(server);
    sim.until("it is reset", |sim| sim.guest.state(stream) == State::Closed);
    assert_eq!((sim.refused(Refusal::InboundOnly), sim.world.dials), (1, 0));
}
