//! The scanner of ClientHellos, beside rustls and beside itself: cut anywhere, the verdict is that of the whole, and what rustls reads
//! as a hello to a name is refused or has that name.
#![no_main]

use exec_sandbox_gateway::tls::{Scan, Scanner};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

fn by_rustls(bytes: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok().filter(|read| *read > 0)?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return accepted.client_hello().server_name().map(str::to_ascii_lowercase),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, cut) = input;
    let whole = Scanner::default().push(&bytes);
    let mut scanner = Scanner::default();
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let in_two = match scanner.push(first) {
        Scan::NeedMore => scanner.push(second),
        verdict => verdict,
    };
    assert_eq!(in_two, whole);
    if let (Some(name), Scan::Hello(hello)) = (by_rustls(&bytes), whole) {
        assert_eq!(hello.server_name.map(String::from), Some(name));
    }
});
