//! The body of a ClientHello, whole.
//!
//! `version | random | session | ciphers | compressions | extensions`
//!
//! Every length is checked before what it measures is read, and what a part leaves over is a contradiction.

use super::Hello;
use crate::policy::{Name, Refusal};

/// Bytes of a client's random value.
const RANDOM_BYTES: usize = 32;

/// Longest session identifier.
const MAX_SESSION_BYTES: usize = 32;

/// The extension with the name.
const EXTENSION_SERVER_NAME: u16 = 0;

/// The extension with an encrypted hello.
const EXTENSION_ECH: u16 = 0xfe0d;

/// The only kind of name there is.
const NAME_OF_HOST: u8 = 0;

/// Why reading stops, for all lengths that do not add up.
const MALFORMED: Refusal = Refusal::HelloMalformed;

/// Bytes that are yet to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.take(1).and_then(|bytes| bytes.first().copied().ok_or(MALFORMED))
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.take(2).and_then(|bytes| bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)).ok_or(MALFORMED))
    }

    /// What a length of one byte measures.
    fn short(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// What a length of two bytes measures.
    fn long(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }
}

/// Reads the body of a ClientHello.
pub(super) fn parse(body: &[u8]) -> Result<Hello, Refusal> {
    let mut body = Cursor(body);
    let version = body.u16()?;
    body.take(RANDOM_BYTES)?;
    let (session, ciphers, compressions) = (body.short()?, body.long()?, body.short()?);
    let is_odd = ciphers.is_empty() || !ciphers.len().is_multiple_of(2);
    if version >> 8 != 3 || session.len() > MAX_SESSION_BYTES || is_odd || compressions.is_empty() {
        return Err(MALFORMED);
    }
    let mut hello = Hello { server_name: None, has_ech: false };
    if body.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Cursor(body.long()?);
    body.end()?;
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.u16()?, extensions.long()?);
        match kind {
            EXTENSION_SERVER_NAME if hello.server_name.is_some() => return Err(MALFORMED),
            EXTENSION_SERVER_NAME => hello.server_name = Some(server_name(content)?),
            EXTENSION_ECH => hello.has_ech = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// Reads the one name of the extension.
fn server_name(content: &[u8]) -> Result<Name, Refusal> {
    let mut content = Cursor(content);
    let mut list = Cursor(content.long()?);
    content.end()?;
    let (kind, name) = (list.u8()?, list.long()?);
    list.end()?;
    // With a dot at its end it is another name to some servers, and clients leave it out.
    if kind != NAME_OF_HOST || name.ends_with(b".") {
        return Err(MALFORMED);
    }
    let name = std::str::from_utf8(name).map_err(|_| Refusal::NameMalformed)?;
    Name::parse(name).map_err(|error| error.refusal())
}
