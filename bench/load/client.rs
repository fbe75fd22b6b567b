//! One keep-alive connection that speaks as much HTTP/1.1 as a JSON endpoint needs.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer longer than this is not one of ours, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 22;

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
    /// For connecting, and for every read.
    pub timeout: Duration,
}

/// What came back; the body lies in the connection's buffer.
pub struct Answer<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

/// A connection that opens when it is first needed and again after an error.
pub struct Connection {
    target: Target,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    /// Connections that the server had closed between two requests.
    pub reopened: u64,
}

impl Connection {
    /// Opens nothing yet.
    pub fn new(target: Target) -> Self {
        Self { target, stream: None, buffer: vec![0; 1 << 16], reopened: 0 }
    }

    /// Sends a body and reads the answer.
    ///
    /// # Errors
    /// When the server cannot be reached, closes early, says nothing for the timeout, or does not
    /// speak HTTP/1.1 with a content-length.
    pub fn ask(&mut self, body: &str) -> Result<Answer<'_>, Error> {
        let used = self.stream.is_some();
        let read = match self.exchange(body) {
            // A server may close an idle connection at any time; only then is asking again honest.
            Err(error) if used && is_closed(&error) => {
                self.reopened += 1;
                self.stream = None;
                self.exchange(body)
            }
            read => read,
        };
        if read.is_err() {
            self.stream = None;
        }
        let (head, end) = read?;
        if head.close {
            self.stream = None;
        }
        Ok(Answer { status: head.status, body: &self.buffer[head.bytes..end] })
    }

    fn exchange(&mut self, body: &str) -> Result<(Head, usize), Error> {
        let Target { address, host, path, timeout } = &self.target;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(address, *timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(*timeout))?;
                none.insert(stream)
            }
        };
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                if filled >= ANSWER_BYTES_MAX {
                    return Err(invalid("an answer beyond 4 MiB"));
                }
                self.buffer.resize(2 * filled, 0);
            }
            let got = stream.read(&mut self.buffer[filled..])?;
            if got == 0 {
                // Closed inside an answer is a failure; before one it may be the idle timeout.
                let kind = match filled {
                    0 => ErrorKind::ConnectionReset,
                    _ => ErrorKind::UnexpectedEof,
                };
                return Err(kind.into());
            }
            filled += got;
            if let Some(head) = Head::read(&self.buffer[..filled])?
                && filled >= head.bytes + head.length
            {
                let end = head.bytes + head.length;
                return Ok((head, end));
            }
        }
    }
}

fn is_closed(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

struct Head {
    status: u16,
    bytes: usize,
    length: usize,
    close: bool,
}

impl Head {
    /// None while the head is not complete.
    fn read(text: &[u8]) -> Result<Option<Self>, Error> {
        let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(&text[..end]).map_err(|_| invalid("a head in no UTF-8"))?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let header = |name: &str| {
            head.lines()
                .skip(1)
                .filter_map(|line| line.split_once(':'))
                .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
        };
        Ok(Some(Self {
            status: status.ok_or_else(|| invalid("no HTTP/1.1 status"))?,
            bytes: end + 4,
            length: header("content-length")
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| invalid("no content-length"))?,
            close: header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        }))
    }
}
