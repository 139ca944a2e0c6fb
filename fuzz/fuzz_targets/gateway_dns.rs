//! The resolver's brain, between a hostile guest and resolvers that say anything.
//!
//! The oracle: what is told can be read and fits a datagram, what is forwarded is one question for addresses of a permitted name, no
//! address that may not be reached is told or pinned, and no more questions are out than may be.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use exec_sandbox_gateway::{
    dns::{Action, Court, MAX_UDP_QUESTION_BYTES, Resolver, Transport},
    names::Book,
    policy::{AllowList, Exceptions, Name, Policy, Refusals, Rules},
};
use hickory_proto::{
    op::{Message, OpCode},
    rr::{RData, Record, RecordType, rdata},
};
use libfuzzer_sys::fuzz_target;

fn check_told(rules: &Rules, told: &[u8]) {
    let message = Message::from_vec(told).expect("what is told can be read");
    assert!(told.len() <= MAX_UDP_QUESTION_BYTES || message.answers.is_empty());
    for record in &message.answers {
        let RData::A(address) = &record.data else { panic!("{record:?}") };
        assert!(rules.judge_address(IpAddr::V4(address.0)).is_ok(), "{address:?}");
    }
}

fuzz_target!(|steps: Vec<(bool, u16, Vec<u8>, Vec<[u8; 4]>)>| {
    let list = AllowList::new(["example.com"]).expect("it is a domain");
    let rules = Rules { policy: Policy::AllowList(list), exceptions: Exceptions::default() };
    let mut now = Instant::now();
    let mut resolver = Resolver::new(3, now);
    let (mut book, mut refusals, mut out) = (Book::default(), Refusals::default(), Vec::new());
    for (is_question, millis, bytes, addresses) in steps {
        now += Duration::from_millis(millis.into());
        macro_rules! court {
            () => {
                Court { rules: &rules, book: &mut book, refusals: &mut refusals, now }
            };
        }
        if is_question {
            match resolver.query(&bytes, Transport::Tcp, court!()) {
                Action::Answer(told) => check_told(&rules, &told),
                Action::Forward { key, message } => {
                    let question = Message::from_vec(&message).expect("what is forwarded can be read");
                    let [query] = &question.queries[..] else { panic!("{question:?}") };
                    assert_eq!(query.query_type, RecordType::A);
                    let name = Name::parse(&query.name.to_ascii()).expect("it is a name");
                    assert!(rules.judge_name(&name).is_ok(), "{name}");
                    out.push((key, question));
                }
                Action::Ignore => {}
            }
        } else if let Some((key, question)) = out.pop() {
            let mut answer = Message::response(question.metadata.id, OpCode::Query);
            answer.add_queries(question.queries.clone());
            for address in addresses {
                let data = RData::A(rdata::A(Ipv4Addr::from(address)));
                answer.add_answer(Record::from_rdata(question.queries[0].name.clone(), 60, data));
            }
            let honest = answer.to_vec().expect("it is an answer");
            let told = resolver.upstream(key, &bytes, court!());
            let told = told.or_else(|| resolver.upstream(key, &honest, court!()));
            check_told(&rules, &told.expect("an honest answer is one"));
        }
        assert!(resolver.pending() <= 64);
        assert!(book.addresses().all(|address| rules.judge_address(address).is_ok()));
    }
});
