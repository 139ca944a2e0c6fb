//! Every refusal that a program without privileges can meet, by its name, and beside them what is permitted.
//!
//! What such a program cannot send is tried on the engine itself: IPv6 and addresses of loopback leave no guest, and a VM that reaches
//! nothing has no gateway that could refuse.

use exec_sandbox::NetworkPolicy;

use vmtests::World;

use crate::{
    Online,
    internet::{Internet, public},
    python,
};

/// What programs try besides. `GOOD` is where a name of the allow-list leads.
const MORE_TRIES: &str = r#"
import time

GATEWAY = "192.168.127.1"
A, TXT, AAAA = 1, 16, 28

def say(sends):
    return tcp(GOOD, 443, sends)

def hello(name, surplus=0):
    extensions = b""
    if name is not None:
        entry = b"\0" + (len(name) + surplus).to_bytes(2, "big") + name
        names = len(entry).to_bytes(2, "big") + entry
        extensions = b"\0\0" + len(names).to_bytes(2, "big") + names
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2, "big") + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + len(message).to_bytes(2, "big") + message

def question(name, kind=A):
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    return b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"

def resolver():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(20)
    one.connect((GATEWAY, 53))
    return one

def heard(one):
    code = one.recv(600)[3] & 15
    if code:
        raise ConnectionError(f"code {code}")
    return code

def ask(message):
    with resolver() as one:
        one.send(message)
        return heard(one)

def ask_at_once(message, times):
    with resolver() as one:
        for _ in range(times):
            one.send(message)
        for _ in range(times):
            heard(one)

def ask_for_new_names(times):
    with resolver() as one:
        for number in range(times):
            label = b"%063d" % number
            one.send(question(b".".join([label] * 3) + b".many.example"))
            heard(one)

def ask_on_a_connection(length):
    return tcp(GATEWAY, 53, length.to_bytes(2, "big") + bytes(100))

def open_at_once(times):
    opened = []
    try:
        for _ in range(times):
            opened.append(socket.create_connection((GOOD, 443), 20))
    finally:
        # Without a word and without an end.
        for one in opened:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()

def send(protocol, length):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol) as one:
        one.sendto(bytes(length), (GOOD, 7))
    return "sent"

def six():
    with socket.create_connection(("2001:4860:4860::8888", 443), 20):
        return "connected"
"#;

/// What is tried, and by which name it is refused.
const REFUSED: [(&str, &str); 17] = [
    ("tcp, '169.254.1.1', 443", "link_local_address"),
    ("tcp, GOOD, 22", "port_not_allowed"),
    ("say, b'GET / HTTP/1.1\\r\\n\\r\\n'", "not_tls"),
    ("say, hello(None)", "no_name"),
    ("say, hello(b'good.example', surplus=1)", "hello_malformed"),
    // A record as long as records may be, and a hello that is longer than all of them.
    ("say, b'\\x16\\x03\\x01\\x40\\x00' + b'\\x01\\xff\\xff\\xff'", "hello_too_large"),
    ("say, hello(b'192.0.2.1')", "name_is_address"),
    ("say, hello(b'good example')", "name_malformed"),
    ("say, hello(b'a' * 64 + b'.good.example')", "name_too_long"),
    ("say, hello(b'other.example')", "name_not_allowed"),
    ("say, hello(b'a.good.example')", "name_address_mismatch"),
    ("ask, b'no question at all'", "query_malformed"),
    ("ask, question(b'192.0.2.1')", "name_is_address"),
    ("ask, question(b'good example')", "name_malformed"),
    ("ask, question(b'other.example')", "name_not_allowed"),
    ("ask_on_a_connection, 5000", "query_too_large"),
    ("open_at_once, 300", "flow_limit"),
];

/// The same where it is too much of what is permitted, in an order in which none is in the way of the next.
const LIMITED: [(&str, &str); 4] = [
    ("ask_for_new_names, 190", "query_budget"),
    ("ask_at_once, question(b'good.example', AAAA), 400", "query_rate"),
    // Seconds in which something may be asked again.
    ("time.sleep(3) or socket.gethostbyname, 'other.example'", "name_not_allowed"),
    ("ask_at_once, question(b'silent.good.example'), 70", "query_limit"),
];

#[tokio::test]
async fn what_a_program_may_not_do_is_refused_by_its_name_and_the_rest_goes_on() {
    let names = [("good.example", 1), ("other.example", 2), ("many.example", 3)];
    let list = NetworkPolicy::AllowList(vec!["good.example".into(), "many.example".into()]);
    let online = Online::within(World::new(), Internet::start(&names), python(list), &[]).await;
    online.prepare().await;
    let good = public(1);
    assert_eq!(online.attempt(&format!("GOOD = '{good}'\n{MORE_TRIES}")).await, (String::new(), vec![]));
    let permitted = "tls, 'good.example', 'good.example'";
    online.reaches(permitted, "this is good.example").await;
    // There is no way that IPv6 could take, and so nothing to refuse.
    let (came, met) = online.attempt("attempt(six)").await;
    assert!(came.starts_with("refused: OSError") && met.is_empty(), "{came} {met:?}");
    // Who sends these is not told.
    for (code, reason) in [
        ("send, 0, 65507", "fragment"),
        ("send, 136, 10", "protocol_refused"),
        ("udp, GATEWAY, 53, False", "query_malformed"),
    ] {
        online.is_dropped(code, reason).await;
    }
    let too_large = "with resolver() as one:\n    one.send(bytes(600))\nattempt(ask, question(b'good.example'))";
    assert_eq!(online.attempt(too_large).await, ("reached: 0".into(), vec!["query_too_large"]));
    for (code, reason) in REFUSED {
        online.is_refused(code, reason).await;
    }
    online.reaches(permitted, "this is good.example").await;
    for (code, reason) in LIMITED {
        online.is_refused(code, reason).await;
    }
    // Nobody has to be asked for its address, which is what is at its limit.
    online.reaches(&format!("tls, '{good}', 'good.example'"), "this is good.example").await;
    online.end().await;
}
