//! What a gateway holds at most, and what it gives back.

use exec_sandbox_gateway::link::{GATEWAY, GUEST};
use smoltcp::wire::{Icmpv4Packet, IpProtocol};

use super::{super::guest::packet, *};

#[test]
fn flows_over_the_limit_are_refused_by_name() {
    let server = echo_server();
    let mut gateway = Gateway::start(|config| config.limits.tcp_flows = 4);
    let streams: Vec<_> = (0..5).map(|_| gateway.guest.connect(server)).collect();
    gateway.until("all know", |gateway| {
        streams.iter().all(|stream| !matches!(gateway.guest.state(*stream), State::SynSent))
    });
    let open = streams.iter().filter(|stream| gateway.guest.state(**stream) == State::Established).count();
    assert_eq!((open, gateway.ask().refusals.get(Refusal::FlowLimit)), (4, 1));
}

#[test]
fn the_end_of_qemu_is_its_end_also_while_nothing_more_fits_into_the_stream() {
    let mut gateway = Gateway::start(|_| ());
    let mut request = b"\x08\0\0\0\0\x01\0\x02".to_vec();
    request.resize(60_000, 0);
    Icmpv4Packet::new_unchecked(&mut request[..]).fill_checksum();
    let request = frame(&packet(GUEST, GATEWAY, IpProtocol::Icmp, &request));
    // Nobody reads the answers. When nothing has been taken for a while, the gateway waits for room.
    let mut taken = Instant::now();
    while taken.elapsed() < Duration::from_millis(200) {
        if gateway.outgoing.is_empty() {
            gateway.send(&request);
        }
        let left = gateway.outgoing.len();
        gateway.write();
        if gateway.outgoing.len() < left {
            taken = Instant::now();
        }
    }
    gateway.qemu.shutdown(Shutdown::Both).expect("it is connected");
    let end = Instant::now() + PATIENCE;
    while gateway.child.try_wait().expect("it is a child").is_none() {
        assert!(Instant::now() < end, "it does not notice within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
    let (status, complaint) = gateway.ended();
    assert!(status.success() && complaint.is_empty(), "{status}: {complaint}");
}

#[test]
fn what_bursts_of_connections_held_is_given_back() {
    const CONNECTIONS: usize = 40;
    let server = echo_server();
    let mut gateway = Gateway::start(|_| ());
    let descriptors =
        |gateway: &Gateway| fs::read_dir(format!("/proc/{}/fd", gateway.child.id())).expect("it lives").count();
    let kib = |gateway: &Gateway, key| gateway.proc("status", key).parse::<usize>().expect("it is a number");
    let (few, before, said) = (descriptors(&gateway), kib(&gateway, "VmRSS"), pattern(256 * 1024));
    // Only the second burst meets an allocator that has seen large pieces come back.
    for _ in 0..2 {
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect(server)).collect();
        let mut left = CONNECTIONS * said.len();
        for stream in &streams {
            assert_eq!(gateway.guest.send(*stream, &said), said.len());
        }
        gateway.until("everything is back", |gateway| {
            left -= streams.iter().map(|stream| gateway.guest.take(*stream).len()).sum::<usize>();
            left == 0
        });
        for stream in streams {
            gateway.guest.tcp(stream).abort();
        }
        gateway.until("all are closed", |gateway| descriptors(gateway) == few);
    }
    // What was closed in a turn is gone when the next one answers.
    gateway.ask();
    let (peak, after) = (kib(&gateway, "VmHWM"), kib(&gateway, "VmRSS"));
    assert!(peak > before + 8 * 1024, "{before} KiB before and {peak} KiB at most: nothing was held");
    assert!(after < before + 4 * 1024, "{before} KiB before, {peak} KiB at most, {after} KiB afterwards");
}
