//! Questions and answers, each refusal beside what is not refused.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::policy::{AllowList, Exceptions, Policy};

struct World {
    rules: Rules,
    resolver: Resolver,
    book: Book,
    refusals: Refusals,
    now: Instant,
}

impl World {
    fn with(policy: Policy) -> Self {
        let now = Instant::now();
        Self {
            rules: Rules { policy, exceptions: Exceptions::default() },
            resolver: Resolver::new(7, now),
            book: Book::default(),
            refusals: Refusals::default(),
            now,
        }
    }

    fn open() -> Self {
        Self::with(Policy::Open)
    }

    fn allowing(domain: &str) -> Self {
        Self::with(Policy::AllowList(AllowList::new([domain]).expect("it is a domain")))
    }

    fn court(&mut self) -> (&mut Resolver, Court<'_>) {
        let Self { rules, resolver, book, refusals, now } = self;
        (resolver, Court { rules, book, refusals, now: *now })
    }

    fn say(&mut self, message: &[u8]) -> Action {
        let (resolver, court) = self.court();
        resolver.query(message, Transport::Udp, court)
    }

    fn hear(&mut self, key: u64, answer: &[u8]) -> Option<Vec<u8>> {
        let (resolver, court) = self.court();
        resolver.upstream(key, answer, court)
    }

    fn ask(&mut self, name: &str, kind: RecordType) -> Action {
        self.say(&asks(name, kind))
    }

    /// Asks for addresses, which is forwarded.
    fn forwarded(&mut self, name: &str) -> (u64, Message) {
        match self.ask(name, RecordType::A) {
            Action::Forward { key, message } => (key, Message::from_vec(&message).expect("it is a question")),
            other => panic!("{name} is not asked for: {other:?}"),
        }
    }

    /// Answers it, and returns what the guest is told.
    fn answered(&mut self, key: u64, answer: &Message) -> Option<Message> {
        let bytes = answer.to_vec().expect("it is an answer");
        self.hear(key, &bytes).map(|told| Message::from_vec(&told).expect("it is an answer"))
    }

    fn count(&self, refusal: Refusal) -> u64 {
        self.refusals.get(refusal)
    }

    fn names_of(&self, address: [u8; 4]) -> Vec<String> {
        self.book.names_of(Ipv4Addr::from(address).into(), self.now).map(ToString::to_string).collect()
    }
}

fn domain(name: &str) -> Domain {
    Domain::from_ascii(name).expect("it is a domain")
}

fn asks(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(domain(name), kind));
    message.to_vec().expect("it is a question")
}

fn a(name: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(domain(name), ttl, RData::A(rdata::A(address.into())))
}

fn cname(name: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(domain(name), ttl, RData::CNAME(rdata::CNAME(domain(target))))
}

fn reply(question: &Message, records: Vec<Record>) -> Message {
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.add_queries(question.queries.clone()).add_answers(records);
    answer
}

fn told(action: Action) -> Message {
    match action {
        Action::Answer(answer) => Message::from_vec(&answer).expect("it is an answer"),
        other => panic!("nothing is told: {other:?}"),
    }
}

fn addresses_in(message: &Message) -> Vec<[u8; 4]> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => address.0.octets(),
        other => panic!("{other:?}"),
    };
    message.answers.iter().map(address).collect()
}

#[test]
fn a_name_is_asked_for_anew_and_answered_with_what_was_found() {
    let mut world = World::open();
    let (key, question) = world.forwarded("WWW.Example.com.");
    assert_ne!(question.metadata.id, 77, "the number is our own");
    assert!(question.metadata.recursion_desired);
    let records = vec![
        cname("www.example.com.", 300, "edge.example.net."),
        a("edge.example.net.", 120, [203, 0, 114, 1]),
        a("edge.example.net.", 500, [203, 0, 114, 2]),
        a("other.example.net.", 500, [203, 0, 114, 3]),
    ];
    let told = world.answered(key, &reply(&question, records)).expect("it is told");
    assert_eq!((told.metadata.id, told.metadata.response_code), (77, ResponseCode::NoError));
    assert_eq!(told.queries[0].name.to_ascii(), "WWW.Example.com.", "as it was asked");
    assert_eq!(addresses_in(&told), [[203, 0, 114, 1], [203, 0, 114, 2]]);
    assert!(told.answers.iter().all(|record| record.ttl == 120 && record.name == domain("www.example.com.")));
    assert_eq!(world.names_of([203, 0, 114, 1]), ["www.example.com"]);
    assert!(world.names_of([203, 0, 114, 3]).is_empty(), "it is nobody's that was asked for");
    assert_eq!((world.resolver.pending(), world.answered(key, &reply(&question, vec![])).is_none()), (0, true));
}

#[test]
fn the_case_of_a_guests_letters_does_not_leave() {
    let mut world = World::open();
    for spelling in ["www.example.com.", "WWW.Example.COM.", "wWw.eXample.com."] {
        let (key, question) = world.forwarded(spelling);
        assert_eq!(question.queries[0].name.to_ascii(), "www.example.com.", "{spelling}");
        let answer = reply(&question, vec![a("www.example.com.", 60, [203, 0, 114, 1])]);
        let told = world.answered(key, &answer).expect("it is told");
        assert_eq!(told.queries[0].name.to_ascii(), spelling, "the guest is told what it asked");
        assert_eq!(addresses_in(&told), [[203, 0, 114, 1]]);
    }
}

#[test]
fn only_names_of_the_list_are_asked_for() {
    let mut world = World::allowing("example.com");
    world.forwarded("example.com.");
    world.forwarded("a.b.example.com.");
    for name in ["example.org.", "notexample.com.", "com."] {
        let told = told(world.ask(name, RecordType::A));
        assert_eq!(told.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(told(world.ask("example.org.", RecordType::AAAA)).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(world.count(Refusal::NameNotAllowed), 4);
}

#[test]
fn whoever_has_no_network_may_not_ask() {
    for (policy, refusal) in [(Policy::Denied, Refusal::NetworkDenied), (Policy::InboundOnly, Refusal::InboundOnly)] {
        let mut world = World::with(policy);
        assert_eq!(told(world.ask("example.com.", RecordType::A)).metadata.response_code, ResponseCode::Refused);
        assert_eq!(world.count(refusal), 1);
    }
}

#[test]
fn there_is_no_ipv6_and_no_key_without_that_being_a_refusal() {
    let mut world = World::open();
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        let told = told(world.ask("example.com.", kind));
        assert_eq!((told.metadata.response_code, told.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    assert_eq!(world.refusals, Refusals::default());
}

#[test]
fn nothing_but_addresses_is_asked_for() {
    let mut world = World::open();
    for kind in [RecordType::TXT, RecordType::NULL, RecordType::ANY, RecordType::MX, RecordType::PTR, RecordType::NS] {
        let told = told(world.ask("example.com.", kind));
        assert_eq!((told.metadata.response_code, told.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    assert_eq!(world.count(Refusal::QueryType), 6);
}

#[test]
fn addresses_of_the_hosts_world_are_left_out_and_never_pinned() {
    let mut world = World::open();
    let (key, question) = world.forwarded("rebind.example.");
    let private = [[127, 0, 0, 1], [10, 1, 2, 3], [169, 254, 169, 254], [192, 168, 127, 1]];
    let mut records: Vec<_> = private.iter().map(|address| a("rebind.example.", 60, *address)).collect();
    records.push(a("rebind.example.", 60, [8, 8, 4, 4]));
    let told = world.answered(key, &reply(&question, records.clone())).expect("it is told");
    assert_eq!(addresses_in(&told), [[8, 8, 4, 4]]);
    assert!(private.iter().all(|address| world.names_of(*address).is_empty()));
    assert_eq!(world.count(Refusal::LoopbackAddress), 1);
    assert_eq!(world.count(Refusal::MetadataAddress), 1);
    assert_eq!(world.count(Refusal::PrivateAddress), 2);
    records.pop();
    let (key, question) = world.forwarded("rebind.example.");
    let told = world.answered(key, &reply(&question, records)).expect("it is told");
    assert_eq!((told.metadata.response_code, told.answers.len()), (ResponseCode::NXDomain, 0));
}

#[test]
fn what_is_no_answer_to_the_question_leaves_it_open() {
    let mut world = World::open();
    let (key, question) = world.forwarded("example.com.");
    let good = reply(&question, vec![a("example.com.", 60, [8, 8, 4, 4])]);
    let mut other_number = good.clone();
    other_number.metadata.id ^= 1;
    let mut other_name = good.clone();
    other_name.queries[0].name = domain("example.org.");
    let mut other_type = good.clone();
    other_type.queries[0].query_type = RecordType::TXT;
    let mut without = good.clone();
    without.queries.clear();
    for wrong in [&other_number, &other_name, &other_type, &without, &question] {
        assert!(world.answered(key, wrong).is_none(), "{wrong:?}");
    }
    let garbage = world.hear(key, b"?");
    assert_eq!((garbage, world.resolver.pending()), (None, 1));
    assert_eq!(addresses_in(&world.answered(key, &good).expect("this is one")), [[8, 8, 4, 4]]);
}

#[test]
fn errors_of_a_resolver_are_told_as_such_and_aliases_without_end_lead_nowhere() {
    let mut world = World::open();
    for (code, expected) in [
        (ResponseCode::NXDomain, ResponseCode::NXDomain),
        (ResponseCode::Refused, ResponseCode::ServFail),
        (ResponseCode::NoError, ResponseCode::NoError),
    ] {
        let (key, question) = world.forwarded("example.com.");
        let mut answer = reply(&question, vec![cname("example.com.", 60, "example.com.")]);
        answer.metadata.response_code = code;
        let told = world.answered(key, &answer).expect("it is told");
        assert_eq!((told.metadata.response_code, told.answers.len()), (expected, 0));
    }
    let (key, _) = world.forwarded("example.com.");
    let told = Message::from_vec(&world.resolver.give_up(key).expect("it is out")).expect("it is an answer");
    assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
    assert_eq!((world.resolver.give_up(key), world.resolver.pending()), (None, 0));
}

#[test]
fn what_is_no_question_is_told_so_or_nothing() {
    let mut world = World::open();
    let mut response = Message::response(5, OpCode::Query);
    response.add_query(Query::query(domain("example.com."), RecordType::A));
    assert_eq!(world.say(&response.to_vec().expect("it is a message")), Action::Ignore);
    assert_eq!(world.say(b"short"), Action::Ignore);
    let mut two = Message::new(5, MessageType::Query, OpCode::Query);
    two.add_query(Query::query(domain("a.example."), RecordType::A));
    two.add_query(Query::query(domain("b.example."), RecordType::A));
    let told = told(world.say(&two.to_vec().expect("it is a message")));
    assert_eq!((told.metadata.id, told.metadata.response_code), (5, ResponseCode::FormErr));
    assert_eq!(world.count(Refusal::QueryMalformed), 3);
    assert_eq!(world.say(&[0; MAX_UDP_QUESTION_BYTES + 1]), Action::Ignore);
    assert_eq!(world.count(Refusal::QueryTooLarge), 1);
}

#[test]
fn questions_that_are_out_and_questions_in_a_time_are_limited() {
    let mut world = World::open();
    for n in 0..pending::MAX_PENDING {
        world.forwarded(&format!("n{n}.example."));
    }
    assert_eq!(told(world.ask("more.example.", RecordType::A)).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.count(Refusal::QueryLimit), 1);
    let mut world = World::open();
    let answered = (0..1000)
        .take_while(|_| told(world.ask("x.example.", RecordType::AAAA)).metadata.response_code == ResponseCode::NoError)
        .count();
    assert_eq!((answered, world.count(Refusal::QueryRate)), (200, 1));
    world.now += std::time::Duration::from_secs(1);
    world.forwarded("x.example.");
}

#[test]
fn what_is_no_question_counts_against_the_rate_too() {
    let mut world = World::open();
    let empty = Message::new(5, MessageType::Query, OpCode::Query).to_vec().expect("it is a message");
    let answered = (0..1000).filter(|_| world.say(&empty) != Action::Ignore).count();
    assert_eq!(answered, 200);
    assert_eq!((world.count(Refusal::QueryMalformed), world.count(Refusal::QueryRate)), (200, 800));
    assert_eq!(told(world.ask("x.example.", RecordType::A)).metadata.response_code, ResponseCode::ServFail);
    world.now += std::time::Duration::from_secs(1);
    world.forwarded("x.example.");
}

proptest! {
    #[test]
    fn nothing_that_may_not_be_reached_is_told_or_pinned_whatever_a_resolver_says(
        addresses in prop::collection::vec(any::<[u8; 4]>(), 0..40),
        ttl in any::<u32>(),
    ) {
        let mut world = World::open();
        let (key, question) = world.forwarded("some.example.");
        let records = addresses.iter().map(|address| a("some.example.", ttl, *address)).collect();
        let bytes = reply(&question, records).to_vec().expect("it is an answer");
        let told = world.hear(key, &bytes);
        let told = told.expect("it is told");
        prop_assert!(told.len() <= MAX_UDP_QUESTION_BYTES);
        let told = Message::from_vec(&told).expect("it is an answer");
        for address in addresses_in(&told) {
            prop_assert!(world.rules.judge_address(Ipv4Addr::from(address).into()).is_ok());
            prop_assert_eq!(world.names_of(address), ["some.example"]);
        }
        prop_assert!(world.book.addresses().all(|address| world.rules.judge_address(address).is_ok()));
    }

    #[test]
    fn no_bytes_of_a_guest_make_it_fail_and_what_is_told_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::open();
        match world.say(&bytes) {
            Action::Answer(answer) => prop_assert!(Message::from_vec(&answer).is_ok()),
            Action::Forward { message, .. } => prop_assert_eq!(Message::from_vec(&message).expect("it is one").queries.len(), 1),
            Action::Ignore => {}
        }
    }
}
