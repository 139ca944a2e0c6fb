//! The scanner beside rustls, at every cut, and each refusal beside the hello that is not refused.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName, server::Acceptor};

use super::*;

/// A hello's parts, to be put together right or wrong.
#[derive(Clone, Debug)]
struct Parts {
    session: Vec<u8>,
    ciphers: Vec<u8>,
    compressions: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Default for Parts {
    fn default() -> Self {
        let (session, ciphers, compressions) = (vec![7; 32], vec![0x13, 0x01, 0xc0, 0x2f], vec![0]);
        Self { session, ciphers, compressions, extensions: vec![(0, names(&[(0, b"www.example.com")]))] }
    }
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("it is short");
    [&length.to_be_bytes()[..], bytes].concat()
}

fn names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    long(&entries.iter().flat_map(|(kind, name)| [vec![*kind], long(name)].concat()).collect::<Vec<_>>())
}

impl Parts {
    fn body(&self) -> Vec<u8> {
        let short = |bytes: &[u8]| [&[u8::try_from(bytes.len()).expect("it is short")], bytes].concat();
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &long(content)].concat())
            .collect();
        [
            &[3, 3][..],
            &[9; 32],
            &short(&self.session),
            &long(&self.ciphers),
            &short(&self.compressions),
            &long(&extensions),
        ]
        .concat()
    }

    fn bytes(&self) -> Vec<u8> {
        record(&message(&self.body()))
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("it is short").to_be_bytes();
    [&[1][..], &length[1..], body].concat()
}

fn record(piece: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &long(piece)].concat()
}

fn scan(bytes: &[u8]) -> Scan {
    Scanner::default().push(bytes)
}

fn named(name: &str) -> Scan {
    Scan::Hello(Hello { server_name: Some(Name::parse(name).expect("it is a name")), has_ech: false })
}

fn with(change: impl FnOnce(&mut Parts)) -> Scan {
    let mut parts = Parts::default();
    change(&mut parts);
    scan(&parts.bytes())
}

/// The hello of a client that is really used.
fn real_hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("it is a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("the configuration is good");
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("a vector takes all");
    }
    bytes
}

/// What rustls makes of it: the name, if it is a hello to it.
fn judged_by_rustls(bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok().filter(|read| *read > 0)?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(accepted.client_hello().server_name().map(str::to_owned)),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Whatever rustls accepts with a name is refused or has that name here.
fn check_beside_rustls(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let (Some(Some(name)), Scan::Hello(hello)) = (judged_by_rustls(bytes), scan(bytes)) {
        prop_assert_eq!(hello.server_name.map(String::from), Some(name.to_ascii_lowercase()));
    }
    Ok(())
}

#[test]
fn the_name_of_a_real_client_is_read_as_rustls_reads_it() {
    for name in ["example.com", "a.b.c.example.com", "xn--bcher-kva.example", "WWW.Example.com", "a_b.example.com"] {
        let bytes = real_hello(name);
        assert_eq!(judged_by_rustls(&bytes), Some(Some(name.to_ascii_lowercase())), "{name}");
        assert_eq!(scan(&bytes), named(name), "{name}");
    }
    let bytes = real_hello("192.0.2.1");
    assert_eq!(judged_by_rustls(&bytes), Some(None));
    assert_eq!(scan(&bytes), Scan::Hello(Hello { server_name: None, has_ech: false }));
}

#[test]
fn a_hello_is_the_same_at_every_cut() {
    for bytes in [real_hello("www.example.com"), Parts::default().bytes()] {
        for at in 0..bytes.len() {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.push(&bytes[..at]), Scan::NeedMore, "{at}");
            assert_eq!(scanner.push(&bytes[at..]), named("www.example.com"), "{at}");
        }
    }
}

#[test]
fn a_hello_over_several_records_is_read_and_what_follows_it_is_not() {
    let whole = message(&Parts::default().body());
    for at in 1..whole.len() {
        let bytes = [record(&whole[..at]), record(&whole[at..]), b"what comes later".to_vec()].concat();
        assert_eq!(scan(&bytes), named("www.example.com"), "{at}");
    }
    let bytes: Vec<u8> = whole.iter().flat_map(|byte| record(&[*byte])).collect();
    assert_eq!(scan(&bytes), named("www.example.com"));
}

#[test]
fn what_is_not_known_is_skipped_and_a_sealed_hello_is_noted() {
    let grease = |parts: &mut Parts| {
        parts.ciphers.splice(0..0, [0x0a, 0x0a]);
        parts.extensions.insert(0, (0x1a1a, Vec::new()));
        parts.extensions.push((0xfafa, vec![0]));
        parts.extensions.push((0x4469, vec![1; 300]));
    };
    assert_eq!(with(grease), named("www.example.com"));
    let sealed = with(|parts| parts.extensions.push((0xfe0d, vec![0; 200])));
    let outer = Name::parse("www.example.com").ok();
    assert_eq!(sealed, Scan::Hello(Hello { server_name: outer, has_ech: true }));
    let nameless = Scan::Hello(Hello { server_name: None, has_ech: false });
    assert_eq!(with(|parts| parts.extensions.clear()), nameless);
    let mut old = Parts { extensions: Vec::new(), ..Parts::default() }.body();
    old.truncate(old.len() - 2);
    assert_eq!(scan(&record(&message(&old))), nameless, "a hello may have no extensions at all");
}

#[test]
fn a_name_that_is_none_is_refused_for_its_reason() {
    let server_name = |content: Vec<u8>| with(|parts| parts.extensions[0].1 = content);
    let name = |name: &[u8]| server_name(names(&[(0, name)]));
    assert_eq!(name(b"a.example"), named("a.example"));
    let long_label = "a".repeat(64);
    for (found, why) in [
        (name(b"192.0.2.1"), Refusal::NameIsAddress),
        (name(b"2001:db8::1"), Refusal::NameIsAddress),
        (name(b"127.1"), Refusal::NameIsAddress),
        (name(b""), Refusal::NameMalformed),
        (name(b"a..b"), Refusal::NameMalformed),
        (name(b"a b"), Refusal::NameMalformed),
        (name(b"a.example\0.evil"), Refusal::NameMalformed),
        (name(b"\xff"), Refusal::NameMalformed),
        (name(long_label.as_bytes()), Refusal::NameTooLong),
        (name(b"a.example."), Refusal::HelloMalformed),
        (server_name(names(&[(0, b"a.example"), (0, b"b.example")])), Refusal::HelloMalformed),
        (server_name(names(&[(1, b"a.example")])), Refusal::HelloMalformed),
        (server_name(names(&[])), Refusal::HelloMalformed),
        (server_name(Vec::new()), Refusal::HelloMalformed),
        (server_name([names(&[(0, b"a.example")]), vec![0]].concat()), Refusal::HelloMalformed),
        (with(|parts| parts.extensions.push((0, names(&[(0, b"b.example")])))), Refusal::HelloMalformed),
    ] {
        assert_eq!(found, Scan::Refused(why));
    }
}

#[test]
fn a_hello_that_contradicts_itself_is_refused() {
    let whole = message(&Parts::default().body());
    let (body, mut versions) = (Parts::default().body(), whole.clone());
    versions[4] = 2;
    for bytes in [
        record(&[&whole[..], &whole].concat()),
        record(&[&whole[..], &[0]].concat()),
        record(&message(&[&body[..], &[0]].concat())),
        record(&message(&body[..body.len() - 1])),
        record(&message(&body[..20])),
        record(&versions),
        [record(&whole[..9]), vec![20, 3, 1, 0, 1, 1]].concat(),
        [record(&whole[..9]), record(&[])].concat(),
        vec![22, 3, 1, 0, 0],
        vec![22, 3, 1, 0x40, 1],
    ] {
        assert_eq!(scan(&bytes), Scan::Refused(Refusal::HelloMalformed), "{bytes:?}");
    }
    for found in [
        with(|parts| parts.session = vec![0; 33]),
        with(|parts| parts.ciphers.clear()),
        with(|parts| parts.ciphers.push(0)),
        with(|parts| parts.compressions.clear()),
    ] {
        assert_eq!(found, Scan::Refused(Refusal::HelloMalformed));
    }
}

#[test]
fn what_is_not_tls_is_known_by_its_first_bytes() {
    for bytes in
        [&b"G"[..], b"SSH-2.0", b"\x80\x2e\x01", b"\x16\x02", b"\x15\x03\x01", b"\x00", b"\x16\x03\x01\x00\x04\x02"]
    {
        assert_eq!(scan(bytes), Scan::Refused(Refusal::NotTls), "{bytes:?}");
    }
    assert_eq!(scan(b""), Scan::NeedMore);
    assert_eq!(scan(b"\x16\x03"), Scan::NeedMore);
}

#[test]
fn a_hello_is_read_up_to_its_bound_and_not_beyond() {
    let padded = |padding: usize| {
        let mut parts = Parts::default();
        parts.extensions.push((21, vec![0; padding]));
        message(&parts.body())
    };
    let room = MAX_HELLO_BYTES - padded(0).len();
    let records = |bytes: &[u8]| bytes.chunks(1000).flat_map(record).collect::<Vec<u8>>();
    assert_eq!(scan(&records(&padded(room))), named("www.example.com"));
    let long = records(&padded(room + 1));
    assert_eq!(scan(&long), Scan::Refused(Refusal::HelloTooLarge));
    assert_eq!(scan(&long[..9]), Scan::Refused(Refusal::HelloTooLarge), "its header says so");
}

#[test]
fn an_end_stays_the_end() {
    let mut scanner = Scanner::default();
    assert_eq!(scanner.push(b"G"), Scan::Refused(Refusal::NotTls));
    assert_eq!(scanner.push(&Parts::default().bytes()), Scan::Refused(Refusal::NotTls));
    let mut scanner = Scanner::default();
    scanner.push(&Parts::default().bytes());
    assert_eq!(scanner.push(b"GET"), named("www.example.com"));
}

proptest! {
    #[test]
    fn pieces_and_records_of_any_size_say_what_the_whole_says(
        record_sizes in prop::collection::vec(1..400_usize, 1..20),
        piece_sizes in prop::collection::vec(1..300_usize, 1..20),
        flips in prop::collection::vec((0..4096_usize, 1..=255_u8), 0..3),
    ) {
        let mut whole = message(&Parts::default().body());
        for (at, flip) in flips {
            let at = at % whole.len();
            whole[at] ^= flip;
        }
        let (mut bytes, mut rest) = (Vec::new(), &whole[..]);
        for size in record_sizes.iter().cycle() {
            let (piece, tail) = rest.split_at(rest.len().min(*size));
            bytes.extend(record(piece));
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        let expected = scan(&bytes);
        let (mut scanner, mut rest) = (Scanner::default(), &bytes[..]);
        let mut found = Scan::NeedMore;
        for size in piece_sizes.iter().cycle() {
            let (piece, tail) = rest.split_at(rest.len().min(*size));
            found = scanner.push(piece);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_changed_hello_has_the_name_that_rustls_reads(
        at in 0..4096_usize,
        byte: u8,
        name in "[a-z.]{1,20}",
    ) {
        let mut bytes = real_hello("www.example.com");
        let at = at % bytes.len();
        bytes[at] = byte;
        check_beside_rustls(&bytes)?;
        let parts = Parts { extensions: vec![(0, names(&[(0, name.as_bytes())])), (13, vec![0, 2, 4, 3]), (10, vec![0, 2, 0, 29])], ..Parts::default() };
        check_beside_rustls(&parts.bytes())?;
    }
}
