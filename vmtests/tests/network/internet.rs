//! An internet of one test, in a network namespace: a resolver, servers of TLS, echoes, and a cloud that tells secrets.
//!
//! The test's thread moves there, and with it all that it starts from then on: gateways, and the command line. Addresses that look
//! like the internet's are the namespace's own, so that nothing leaves it and the policy needs no exception. It takes root.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustix::thread::LinkNameSpaceType;
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use tempfile::TempDir;

use crate::site;

/// Longest datagram that is answered.
const DATAGRAM_BYTES: usize = 1500;

/// Bytes of a DNS message before its question.
const DNS_HEADER_BYTES: usize = 12;

/// Public addresses are this one's neighbours: nobody has told a policy anything about them.
const PUBLIC: [u8; 3] = [100, 200, 0];

/// A private address that the host's configuration may except.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// A private address that nobody excepts, and that a public name is resolved to.
pub(crate) const HIDDEN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Where clouds tell secrets. Whoever asks is told.
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A name that its resolver is silent about.
const SILENT: &str = "silent.good.example";

/// The resolver's address.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// See the head of this file.
pub(crate) struct Internet {
    pub(crate) resolver: SocketAddr,
    /// The certificate of the authority by which all servers are known.
    pub(crate) authority: String,
    /// Connections are given back what they send, at the first public address, the private one and the metadata's.
    pub(crate) tcp_echo: [SocketAddr; 3],
    /// Datagrams are sent back.
    pub(crate) udp_echo: SocketAddr,
    /// Removed with it.
    _site: Option<TempDir>,
}

/// A public address.
pub(crate) fn public(last: u8) -> Ipv4Addr {
    let [a, b, c] = PUBLIC;
    Ipv4Addr::new(a, b, c, last)
}

/// Moves this thread into a network of its own that has these addresses.
fn move_away(addresses: &[Ipv4Addr]) {
    let added: String = addresses.iter().map(|address| format!(" && ip addr add {address}/32 dev lo")).collect();
    let script = format!("ip link set lo up{added} && echo ready && read -r _");
    let mut maker = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux is installed");
    let mut line = String::new();
    BufReader::new(maker.stdout.take().expect("it is piped")).read_line(&mut line).expect("it is text");
    assert_eq!(line, "ready\n", "making a network takes root, and iproute2");
    let network = File::open(format!("/proc/{}/ns/net", maker.id())).expect("it waits");
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("it is one");
    drop(maker.stdin.take());
    maker.wait().expect("it is ours");
}

impl Internet {
    /// `names` are resolved to addresses whose last byte is given; at each address there is a server of TLS with that name and the names
    /// below it.
    pub(crate) fn start(names: &[(&'static str, u8)]) -> Self {
        Self::serving(names, None)
    }

    /// The same with servers that have the files in `site`, if there is one.
    pub(crate) fn serving(names: &[(&'static str, u8)], site: Option<TempDir>) -> Self {
        let files: Option<Arc<Path>> = site.as_ref().map(|site| site.path().into());
        let mut addresses = vec![public(1), PRIVATE, METADATA];
        addresses.extend(names.iter().map(|(_, last)| public(*last)).filter(|address| *address != public(1)));
        move_away(&addresses);
        let key = KeyPair::generate().expect("there is randomness");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are no mistake");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "the authority of a test");
        let authority = CertifiedIssuer::self_signed(params, key).expect("it can be signed");
        for (name, last) in names {
            serve_tls(SocketAddr::from((public(*last), 443)), name, &authority, files.clone());
        }
        let table = names.iter().map(|(name, last)| ((*name).to_owned(), public(*last)));
        let table = table.chain([("rebound.good.example".to_owned(), HIDDEN)]).collect();
        Self {
            resolver: answer_names(RESOLVER, table),
            authority: authority.pem(),
            tcp_echo: [public(1), PRIVATE, METADATA].map(echo_streams),
            udp_echo: echo_datagrams(public(1)),
            _site: site,
        }
    }
}

/// Says which name a client has asked for, in HTTP if it speaks that, or gives it the one of `files` that it wants.
fn serve_tls(at: SocketAddr, name: &str, authority: &CertifiedIssuer<'_, KeyPair>, files: Option<Arc<Path>>) {
    let names = vec![name.to_owned(), format!("*.{name}")];
    let key = KeyPair::generate().expect("there is randomness");
    let mut params = CertificateParams::new(names).expect("they are names");
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, authority).expect("it can be signed");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("they are known")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("the key fits");
    let (config, listener) = (Arc::new(config), TcpListener::bind(at).expect("port 443 may be opened"));
    serve(listener, move |connection| {
        let tls = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, connection);
        let mut asked = [0; 5];
        stream.read_exact(&mut asked)?;
        let name = stream.conn.server_name().unwrap_or("nobody").to_owned();
        let said = format!("this is {name}");
        match &asked {
            b"GET /" | b"HEAD " => site::answer(&mut stream, asked, files.as_deref(), &said)?,
            _ => stream.write_all(said.as_bytes())?,
        }
        stream.conn.send_close_notify();
        stream.flush()
    });
}

fn echo_streams(at: Ipv4Addr) -> SocketAddr {
    let listener = TcpListener::bind((at, 0)).expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    serve(listener, |mut connection| io::copy(&mut connection.try_clone()?, &mut connection).map(drop));
    address
}

fn echo_datagrams(at: Ipv4Addr) -> SocketAddr {
    answer_datagrams(at, |datagram| Some(datagram.to_vec()))
}

/// A resolver that knows `table` and the names below its names; what comes later there comes first. Of others there is nothing.
fn answer_names(at: Ipv4Addr, table: Vec<(String, Ipv4Addr)>) -> SocketAddr {
    answer_datagrams(at, move |query| {
        let (name, end) = question(query).filter(|(name, _)| name != SILENT)?;
        let is_below =
            |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let found = table.iter().rfind(|(domain, _)| is_below(domain)).map(|(_, address)| *address);
        let asks_for_address = query.get(end - 4..end - 2) == Some(&[0, 1]);
        let addresses: Vec<Ipv4Addr> = found.filter(|_| asks_for_address).into_iter().collect();
        let mut answer = query.get(..2)?.to_vec();
        // An answer with recursion; 3: no such name.
        answer.extend([
            0x81,
            if found.is_some() { 0x80 } else { 0x83 },
            0,
            1,
            0,
            u8::try_from(addresses.len()).ok()?,
            0,
            0,
            0,
            0,
        ]);
        answer.extend_from_slice(query.get(DNS_HEADER_BYTES..end)?);
        for address in addresses {
            // The question's name, an address of the internet, for a minute, of four bytes.
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    })
}

/// The name that is asked for, in small letters, and where the question ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), DNS_HEADER_BYTES);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at + 4)).filter(|(_, end)| *end <= query.len());
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

fn serve(listener: TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            // A client that hangs up is what some tests are about.
            thread::spawn(move || drop(serve(connection)));
        }
    });
}

fn answer_datagrams(at: Ipv4Addr, answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((at, 0)).expect("there is a port");
    let address = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut datagram = [0; DATAGRAM_BYTES];
        while let Ok((bytes, client)) = socket.recv_from(&mut datagram) {
            if let Some(answer) = datagram.get(..bytes).and_then(&answer) {
                let _ = socket.send_to(&answer, client);
            }
        }
    });
    address
}
