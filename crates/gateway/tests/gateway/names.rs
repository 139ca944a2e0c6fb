//! Names: questions of the guest over UDP and TCP, and what an allow-list makes of their answers.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    engine::{Gate, Question},
    link::GATEWAY,
    policy::{AllowList, Policy, Refusal},
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use smoltcp::{iface::SocketHandle, socket::tcp::State};

use super::{
    gate,
    guest::{frame, udp},
    netsim::{Host, Netsim, SERVER},
};

const DNS: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 53);

fn allowing(domain: &str) -> Netsim {
    let list = AllowList::new([domain]).expect("it is a domain");
    Netsim::new(Gate::new(gate::rules(Policy::AllowList(list), &[]), 1, Instant::now()))
}

fn asks(name: &str) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("it is a name"), RecordType::A));
    message.to_vec().expect("it is a question")
}

/// The answer to the question that was forwarded last.
fn answers(sim: &mut Netsim, address: Ipv4Addr) {
    let (number, _, question) = sim.world.questions.last().cloned().expect("it was forwarded");
    let question = Message::from_vec(&question).expect("it is a question");
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_queries(question.queries.clone());
    answer.add_answer(Record::from_rdata(question.queries[0].name.clone(), 60, RData::A(rdata::A(address))));
    sim.engine.answered(number, &answer.to_vec().expect("it is an answer"), &mut sim.world, sim.now);
}

/// What the guest is told in datagrams.
fn told(sim: &mut Netsim) -> Vec<Message> {
    let frames = sim.frames_out();
    // Past the headers of Ethernet, IPv4 and UDP.
    frames.iter().map(|frame| Message::from_vec(&frame[42..]).expect("it is an answer")).collect()
}

fn resolves(sim: &mut Netsim, name: &str, address: Ipv4Addr) {
    sim.inject(&frame(&udp(1000, DNS, &asks(name))));
    answers(sim, address);
    let told = told(sim);
    assert_eq!((told.len(), told[0].metadata.id, told[0].answers.len()), (1, 77, 1));
}

fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("it is a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("the configuration is good");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes all");
    bytes
}

/// A connection to `at` that begins with `bytes`.
fn begins(sim: &mut Netsim, at: SocketAddrV4, bytes: &[u8]) -> SocketHandle {
    let stream = sim.guest.connect(at);
    sim.until("it is connected or refused", |sim| {
        matches!(sim.guest.state(stream), State::Established | State::Closed)
    });
    if sim.guest.state(stream) == State::Established {
        sim.guest.send(stream, bytes);
    }
    stream
}

fn is_refused(sim: &mut Netsim, at: SocketAddrV4, bytes: &[u8], why: Refusal) {
    let (before, dials) = (sim.refused(why), sim.world.dials);
    let stream = begins(sim, at, bytes);
    sim.until("it is reset", |sim| sim.guest.state(stream) == State::Closed);
    assert_eq!((sim.refused(why), sim.world.dials), (before + 1, dials), "{}", why.name());
    sim.guest.remove(stream);
}

#[test]
fn a_question_on_a_connection_is_answered_there() {
    let mut sim = Netsim::new(gate::open());
    let stream = sim.guest.connect(DNS);
    sim.until("it is connected", |sim| sim.guest.state(stream) == State::Established);
    let question = asks("example.com.");
    let length = u16::try_from(question.len()).expect("it is short").to_be_bytes();
    sim.guest.send(stream, &[&length[..], &question].concat());
    sim.until("it is forwarded", |sim| sim.world.questions.len() == 1);
    answers(&mut sim, SERVER);
    let mut heard = Vec::new();
    sim.until("it is answered", |sim| {
        heard.extend(sim.guest.take(stream));
        !heard.is_empty()
    });
    let answer = Message::from_vec(&heard[2..]).expect("it is an answer");
    assert_eq!((answer.metadata.id, answer.answers.len()), (77, 1));
}

#[test]
fn a_resolver_that_is_silent_is_followed_by_the_next_and_at_last_the_guest_is_told() {
    let mut sim = Netsim::new(gate::open());
    sim.inject(&frame(&udp(1000, DNS, &asks("example.com."))));
    for _ in 0..3 {
        sim.now += Duration::from_millis(2100);
        sim.engine.expire(&mut sim.world, sim.now);
    }
    assert_eq!(asked(&sim), [0, 1, 0]);
    let told = told(&mut sim);
    assert_eq!((told.len(), told[0].metadata.response_code), (1, ResponseCode::ServFail));
    assert_eq!(sim.engine.next_deadline(), None);
}

/// Which resolvers were asked, in their order.
fn asked(sim: &Netsim) -> Vec<usize> {
    sim.world.questions.iter().map(|(_, upstream, _)| upstream.resolver).collect()
}

/// The resolver that was asked last says that it has failed.
fn fails(sim: &mut Netsim, code: ResponseCode) {
    let (number, _, question) = sim.world.questions.last().cloned().expect("it was forwarded");
    let mut answer = Message::from_vec(&question).expect("it is a question");
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.response_code = code;
    sim.engine.answered(number, &answer.to_vec().expect("it is an answer"), &mut sim.world, sim.now);
}

#[test]
fn a_resolver_that_fails_is_followed_at_once_by_one_that_was_not_asked() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let mut sim = Netsim::new(gate::open());
        sim.inject(&frame(&udp(1000, DNS, &asks("example.com."))));
        fails(&mut sim, code);
        assert_eq!((asked(&sim), told(&mut sim).len()), (vec![0, 1], 0), "{code}");
        fails(&mut sim, code);
        assert_eq!((asked(&sim), told(&mut sim)[0].metadata.response_code), (vec![0, 1], ResponseCode::ServFail));
    }
    let mut sim = Netsim::new(gate::open());
    sim.inject(&frame(&udp(1000, DNS, &asks("example.com."))));
    fails(&mut sim, ResponseCode::NXDomain);
    assert_eq!((asked(&sim), told(&mut sim)[0].metadata.response_code), (vec![0], ResponseCode::NXDomain));
}

#[test]
fn a_resolver_that_is_not_there_is_followed_at_once_and_asked_again_in_time() {
    let mut sim = Netsim::new(gate::open());
    let question = Question(0);
    sim.inject(&frame(&udp(1000, DNS, &asks("example.com."))));
    sim.engine.unanswered(question, &mut sim.world, sim.now);
    assert_eq!(asked(&sim), [0, 1]);
    sim.engine.unanswered(question, &mut sim.world, sim.now);
    assert_eq!((asked(&sim), told(&mut sim).len()), (vec![0, 1], 0), "it may be there again in a moment");
    sim.pass(Duration::from_millis(2100));
    assert_eq!(asked(&sim), [0, 1, 0]);
    answers(&mut sim, SERVER);
    assert_eq!(told(&mut sim)[0].answers.len(), 1);

    let mut sim = Netsim::new(gate::open());
    sim.world.no_resolver = Some(0);
    resolves(&mut sim, "example.com.", SERVER);
    assert_eq!(asked(&sim), [0, 1]);
}

#[test]
fn a_permitted_name_is_reached_by_the_address_that_dns_gave_for_it() {
    let mut sim = allowing("example.com");
    let server = sim.server(443, Host::default);
    resolves(&mut sim, "api.example.com.", SERVER);
    let bytes = hello("api.example.com");
    let stream = begins(&mut sim, server, &bytes);
    sim.until("the server hears it", |sim| sim.world.hosts.get(&0).is_some_and(|host| host.heard.len() == bytes.len()));
    assert_eq!(sim.world.hosts[&0].heard, bytes, "byte for byte");
    sim.guest.send(stream, b"and more");
    sim.until("the rest follows", |sim| sim.world.hosts[&0].heard.ends_with(b"and more"));
    assert_eq!(sim.engine.counters().refusals.iter().map(|(_, count)| count).sum::<u64>(), 0);
}

#[test]
fn everything_else_is_refused_by_its_name() {
    let mut sim = allowing("example.com");
    let server = sim.server(443, Host::default);
    let good = hello("api.example.com");
    is_refused(&mut sim, server, &good, Refusal::AddressNotResolved);
    resolves(&mut sim, "api.example.com.", SERVER);
    is_refused(&mut sim, server, &hello("example.org"), Refusal::NameNotAllowed);
    is_refused(&mut sim, server, &hello("other.example.com"), Refusal::NameAddressMismatch);
    is_refused(&mut sim, server, &hello("192.0.2.7"), Refusal::NoName);
    is_refused(&mut sim, server, b"GET / HTTP/1.1\r\n\r\n", Refusal::NotTls);
    is_refused(&mut sim, SocketAddrV4::new(SERVER, 80), b"GET / HTTP/1.1\r\n\r\n", Refusal::PortNotAllowed);
    sim.inject(&frame(&udp(1001, SocketAddrV4::new(SERVER, 443), b"quic")));
    assert_eq!(sim.refused(Refusal::QuicNotAllowed), 1);
    let _ = sim.frames_out();
    sim.inject(&frame(&udp(1000, DNS, &asks("example.org."))));
    assert_eq!(told(&mut sim)[0].metadata.response_code, ResponseCode::NXDomain);
    assert_eq!((sim.refused(Refusal::NameNotAllowed), sim.world.questions.len()), (2, 1));
    // And still, what is permitted is carried.
    begins(&mut sim, server, &good);
    sim.until("the server hears it", |sim| sim.world.hosts.values().any(|host| host.heard == good));
}
