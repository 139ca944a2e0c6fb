//! The book beside a model that forgets nothing and looks at everything.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::policy::{AllowList, Exceptions};

/// How long a pin of an answer with the shortest life lasts.
const SHORTEST: Duration = Duration::from_secs(30 + 300);

fn name(text: &str) -> Name {
    Name::parse(text).expect("it is a name")
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0800_0000 + number).into()
}

fn open() -> Rules {
    Rules { policy: Policy::Open, exceptions: Exceptions::default() }
}

fn allowing(domains: &[&str]) -> Rules {
    Rules { policy: Policy::AllowList(AllowList::new(domains).expect("they are domains")), ..open() }
}

fn tls(address: IpAddr) -> Destination {
    Destination { address, port: 443, protocol: Protocol::Tcp }
}

fn hello(server_name: Option<&str>) -> Hello {
    Hello { server_name: server_name.map(name), has_ech: false }
}

#[test]
fn an_address_counts_for_the_name_that_it_was_given_for() {
    let (mut book, rules, now) = (Book::default(), allowing(&["example.com"]), Instant::now());
    assert_eq!(book.permits(&rules, tls(address(1)), now), Verdict::Refuse(Refusal::AddressNotResolved));
    book.pin(&name("www.example.com"), address(1), 60, now);
    book.pin(&name("api.example.com"), address(2), 60, now);
    assert_eq!(book.permits(&rules, tls(address(1)), now), Verdict::InspectTls);
    for (server_name, at, expected) in [
        (Some("www.example.com"), 1, Ok(())),
        (Some("api.example.com"), 2, Ok(())),
        (Some("www.example.com"), 2, Err(Refusal::NameAddressMismatch)),
        (Some("example.com"), 1, Err(Refusal::NameAddressMismatch)),
        (Some("example.net"), 1, Err(Refusal::NameNotAllowed)),
        (None, 1, Err(Refusal::NoName)),
    ] {
        assert_eq!(book.judge_hello(&rules, address(at), &hello(server_name), now), expected, "{server_name:?} {at}");
    }
}

#[test]
fn a_name_that_the_list_does_not_permit_opens_no_address() {
    let (mut book, rules, now) = (Book::default(), allowing(&["example.com"]), Instant::now());
    book.pin(&name("example.net"), address(1), 60, now);
    assert_eq!(book.permits(&rules, tls(address(1)), now), Verdict::Refuse(Refusal::AddressNotResolved));
    let hello = hello(Some("example.net"));
    assert_eq!(book.judge_hello(&rules, address(1), &hello, now), Err(Refusal::NameNotAllowed));
}

#[test]
fn a_pinned_address_of_a_refused_range_stays_refused() {
    let (mut book, now) = (Book::default(), Instant::now());
    let inside = IpAddr::from([10, 0, 0, 1]);
    book.pin(&name("example.com"), inside, 60, now);
    let mut rules = allowing(&["example.com"]);
    let named = hello(Some("example.com"));
    assert_eq!(book.permits(&rules, tls(inside), now), Verdict::Refuse(Refusal::PrivateAddress));
    assert_eq!(book.judge_hello(&rules, inside, &named, now), Err(Refusal::PrivateAddress));
    rules.exceptions = Exceptions::new(["10.0.0.0/8".parse().expect("it is a range")]).expect("it is one");
    assert_eq!(book.permits(&rules, tls(inside), now), Verdict::InspectTls);
    assert_eq!(book.judge_hello(&rules, inside, &named, now), Ok(()));
}

#[test]
fn without_a_list_no_name_is_needed_and_without_a_network_none_helps() {
    let (mut book, now) = (Book::default(), Instant::now());
    book.pin(&name("example.com"), address(1), 60, now);
    assert_eq!(book.permits(&open(), tls(address(2)), now), Verdict::Allow);
    assert_eq!(book.judge_hello(&open(), address(2), &hello(None), now), Ok(()));
    for (policy, why) in [(Policy::Denied, Refusal::NetworkDenied), (Policy::InboundOnly, Refusal::InboundOnly)] {
        let rules = Rules { policy, ..open() };
        assert_eq!(book.permits(&rules, tls(address(1)), now), Verdict::Refuse(why));
        assert_eq!(book.judge_hello(&rules, address(1), &hello(Some("example.com")), now), Err(why));
    }
}

#[test]
fn a_pin_lasts_as_long_as_its_answer_and_the_grace() {
    let now = Instant::now();
    let (day, hour) = (24 * 3600, Duration::from_secs(3600));
    for (ttl, lasts) in [(0, SHORTEST), (30, SHORTEST), (100, Duration::from_secs(400)), (day, hour + PIN_GRACE)] {
        let mut book = Book::default();
        book.pin(&name("example.com"), address(1), ttl, now);
        let is_there = |after| book.names_of(address(1), now + after).count() == 1;
        assert!(is_there(lasts - Duration::from_millis(1)), "{ttl}");
        assert!(!is_there(lasts), "{ttl}");
    }
}

#[test]
fn an_answer_never_shortens_a_pin() {
    let (mut book, now) = (Book::default(), Instant::now());
    book.pin(&name("example.com"), address(1), 3600, now);
    book.pin(&name("example.com"), address(1), 30, now);
    assert_eq!(book.names_of(address(1), now + 2 * SHORTEST).count(), 1);
}

#[test]
fn the_address_that_is_longest_untouched_makes_room() {
    let (mut book, now) = (Book::default(), Instant::now());
    let all = u32::try_from(MAX_ADDRESSES).expect("it is small");
    (0..all).for_each(|number| book.pin(&name("example.com"), address(number), 60, now));
    book.pin(&name("example.com"), address(0), 60, now);
    book.pin(&name("example.com"), address(all), 60, now);
    let is_there = |number| book.names_of(address(number), now).count() == 1;
    assert_eq!((is_there(0), is_there(1), is_there(2), is_there(all)), (true, false, true, true));
    assert_eq!(book.addresses().count(), MAX_ADDRESSES);
}

#[derive(Clone, Debug)]
enum Step {
    Pin { name: usize, address: u32, ttl: u32 },
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40_usize, 0..3_u32, 0..5000_u32).prop_map(|(name, address, ttl)| Step::Pin { name, address, ttl }),
        1 => (0..3000_u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

proptest! {
    #[test]
    fn the_book_has_what_a_model_has_and_within_its_bounds(steps in prop::collection::vec(step(), 1..200)) {
        let (mut book, mut now) = (Book::default(), Instant::now());
        // By address: names with their ends, the one that is longest untouched first.
        let mut model: BTreeMap<u32, Vec<(usize, Instant)>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Pin { name: number, address: at, ttl } => {
                    book.pin(&name(&format!("n{number}.example.com")), address(at), ttl, now);
                    let pins = model.entry(at).or_default();
                    let fresh = now + Duration::from_secs(u64::from(ttl.clamp(30, 3600)) + 300);
                    let old = pins.iter().position(|(name, _)| *name == number).map(|at| pins.remove(at).1);
                    if old.is_none() {
                        pins.retain(|(_, until)| *until > now);
                        if pins.len() == MAX_NAMES_PER_ADDRESS {
                            pins.remove(0);
                        }
                    }
                    pins.push((number, old.map_or(fresh, |old| old.max(fresh))));
                }
                Step::Wait { seconds } => now += Duration::from_secs(seconds),
            }
            for (at, pins) in &model {
                let mut expected: Vec<_> =
                    pins.iter().filter(|(_, until)| *until > now).map(|(number, _)| name(&format!("n{number}.example.com"))).collect();
                let mut found: Vec<_> = book.names_of(address(*at), now).cloned().collect();
                expected.sort();
                found.sort();
                prop_assert!(found.len() <= MAX_NAMES_PER_ADDRESS);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
