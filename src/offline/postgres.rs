//! Reads a table or query of PostgreSQL in batches, as Arrow.
//!
//! A blocking client over `postgres-protocol`, which knows messages, SCRAM and MD5; here are the
//! conversation and the types. Rows come through a portal, `batch_rows` at a time, so memory does
//! not grow with the table; the session is read-only. The connection is not encrypted: across
//! networks, tunnel it.
//!
//! ```text
//! int2, int4, int8, oid    Int64       date, timestamp, timestamptz   Timestamp (us, UTC)
//! float4, float8, numeric  Float64     arrays of one dimension        List of Utf8
//! bool                     Boolean     text, uuid, enums, the rest    Utf8
//! numeric(p <= 18, 0)      Int64       bytea                          refused
//! ```
//! Invariant: nothing is rounded in silence. A numeric of more digits than a float has, a time that
//! is `infinity`: the column is named, with the cast that helps. A timestamp without a zone is UTC.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, RecordBatch,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use postgres_protocol::{IsNull, Oid};

use super::tables::Kind;

/// Section `[import.postgres]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows asked for at once.
    pub batch_rows: u32,
    pub connect_timeout_ms: u64,
    /// The longest silence of the server, the query's own time included.
    pub answer_timeout_ms: u64,
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "`{url}` is no address of a database: give postgres://USER[:PASSWORD]@HOST[:PORT]/DATABASE"
    )]
    Url { url: String },
    #[error("`{url}` asks for {what}, which this client does not know; {instead}")]
    Option { url: String, what: String, instead: &'static str },
    #[error("cannot reach PostgreSQL at {at}: {source}")]
    Connect { at: String, source: io::Error },
    #[error("PostgreSQL at {at}: {source}")]
    Io { at: String, source: io::Error },
    #[error(
        "PostgreSQL at {at} asks for {what}, which this client does not know; use scram-sha-256"
    )]
    Authentication { at: String, what: &'static str },
    #[error("PostgreSQL at {at}: {message} ({code}){fix}")]
    Server { at: String, message: String, code: String, fix: &'static str },
    #[error("PostgreSQL at {at}: an answer that fits no question: {what}")]
    Protocol { at: String, what: &'static str },
    #[error("column `{column}` is {found}, which has no place in a table; {fix}")]
    Type { column: String, found: &'static str, fix: &'static str },
    #[error("column `{column}`: `{value}` {why}; {fix}")]
    Value { column: String, value: String, why: &'static str, fix: &'static str },
}

/// Where a database is and who asks. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    user: String,
    password: Option<String>,
    host: String,
    port: u16,
    database: String,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgres://{}@{}/{}", self.user, self.at(), self.database)
    }
}

impl Address {
    /// Reads a URL; without a password in it, `PGPASSWORD` has one.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let hidden = hide_password(url);
        let wrong = || Error::Url { url: hidden.clone() };
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(wrong)?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        for option in options.split('&').filter(|option| !option.is_empty()) {
            if !matches!(option, "sslmode=disable" | "sslmode=prefer" | "sslmode=allow") {
                let instead = "for an encrypted connection open a tunnel, and name its end here";
                return Err(Error::Option { url: hidden, what: option.to_owned(), instead });
            }
        }
        let (user, place) = rest.rsplit_once('@').ok_or_else(wrong)?;
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(unescape(password).ok_or_else(wrong)?)),
            None => (user, None),
        };
        let (place, database) = place.split_once('/').ok_or_else(wrong)?;
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (place, 5432),
        };
        let user = unescape(user).ok_or_else(wrong)?;
        let database = unescape(database).ok_or_else(wrong)?;
        if user.is_empty() || host.is_empty() || database.is_empty() {
            return Err(wrong());
        }
        let password = password.or_else(|| std::env::var("PGPASSWORD").ok());
        Ok(Self { user, password, host: host.to_owned(), port, database })
    }

    fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// One session, at most one query at a time.
pub struct Client {
    at: String,
    stream: TcpStream,
    read: BytesMut,
    batch_rows: u32,
}

impl Client {
    /// Connects and authenticates.
    pub fn connect(address: &Address, config: &Config) -> Result<Self, Error> {
        let at = address.at();
        let failed = |source| Error::Connect { at: at.clone(), source };
        let (host, port) = (address.host.trim_matches(['[', ']']), address.port);
        let wait = Duration::from_millis(config.connect_timeout_ms.max(1));
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut stream = None;
        for place in (host, port).to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&place, wait) {
                Ok(connected) => {
                    stream = Some(connected);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let stream = stream.ok_or_else(|| failed(last))?;
        let silence = Duration::from_millis(config.answer_timeout_ms.max(1));
        stream.set_read_timeout(Some(silence)).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let batch_rows = config.batch_rows.clamp(1, i32::MAX as u32);
        let mut client = Self { at, stream, read: BytesMut::new(), batch_rows };
        client.start(address)?;
        Ok(client)
    }

    fn start(&mut self, address: &Address) -> Result<(), Error> {
        let parameters = [
            ("user", address.user.as_str()),
            ("database", address.database.as_str()),
            ("application_name", "shortlist"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "3"),
            ("default_transaction_read_only", "on"),
        ];
        self.send(|buffer| frontend::startup_message(parameters, buffer))?;
        let password = address.password.as_deref().unwrap_or("").as_bytes();
        let mut scram: Option<sasl::ScramSha256> = None;
        loop {
            match self.receive()? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    self.send(|buffer| frontend::password_message(password, buffer))?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(address.user.as_bytes(), password, body.salt());
                    self.send(|buffer| frontend::password_message(hash.as_bytes(), buffer))?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut offered = body.mechanisms();
                    let mut known = false;
                    while let Some(mechanism) = offered.next().map_err(|e| self.io(e))? {
                        known |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !known {
                        return Err(self.no_way_in("another SASL mechanism"));
                    }
                    let binding = sasl::ChannelBinding::unsupported();
                    let state = scram.insert(sasl::ScramSha256::new(password, binding));
                    let message = state.message().to_vec();
                    self.send(|buffer| {
                        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, &message, buffer)
                    })?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    let state = scram.as_mut().ok_or_else(|| self.stray("SASL"))?;
                    state.update(body.data()).map_err(|e| self.io(e))?;
                    let message = state.message().to_vec();
                    self.send(|buffer| frontend::sasl_response(&message, buffer))?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let state = scram.as_mut().ok_or_else(|| self.stray("SASL"))?;
                    state.finish(body.data()).map_err(|e| self.io(e))?;
                }
                Message::AuthenticationGss | Message::AuthenticationKerberosV5 => {
                    return Err(self.no_way_in("Kerberos"));
                }
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(self.stray("while connecting")),
            }
        }
    }

    /// Runs a query, or reads a table by its name; `take` gets its rows batch by batch. Returns the
    /// schema, which a table without rows has too.
    pub fn read<E: From<Error>>(
        &mut self,
        query: &str,
        mut take: impl FnMut(RecordBatch) -> Result<(), E>,
    ) -> Result<SchemaRef, E> {
        let query = as_query(query);
        self.send(|buffer| {
            frontend::parse("", &query, std::iter::empty(), buffer)?;
            let none = std::iter::empty::<i16>();
            // Values in their text form, which every type has.
            let bound = frontend::bind(
                "",
                "",
                none.clone(),
                std::iter::empty::<()>(),
                |(), _| Ok(IsNull::Yes),
                none,
                buffer,
            );
            bound.map_err(|_| io::Error::other("a query without parameters cannot be bound"))?;
            frontend::describe(b'P', "", buffer)?;
            frontend::flush(buffer);
            Ok(())
        })?;
        let mut columns = loop {
            match self.receive()? {
                Message::ParseComplete | Message::BindComplete => {}
                Message::RowDescription(body) => {
                    let mut columns = Vec::new();
                    let mut fields = body.fields();
                    while let Some(field) = fields.next().map_err(|e| self.io(e))? {
                        let (oid, modifier) = (field.type_oid(), field.type_modifier());
                        columns.push(Column::new(field.name(), oid, modifier)?);
                    }
                    break columns;
                }
                Message::NoData => return Err(self.stray("a query without rows").into()),
                _ => return Err(self.stray("after a query").into()),
            }
        };
        let fields = columns.iter().map(|c| Field::new(&c.name, c.kind.data_type(), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows_max = self.batch_rows as i32;
        loop {
            self.send(|buffer| {
                frontend::execute("", rows_max, buffer)?;
                frontend::flush(buffer);
                Ok(())
            })?;
            let (mut rows, mut more) = (0, true);
            while more {
                match self.receive()? {
                    Message::DataRow(body) => {
                        let mut ranges = body.ranges();
                        for column in &mut columns {
                            let range = ranges.next().map_err(|e| self.io(e))?.flatten();
                            let bytes = range.map(|range| &body.buffer()[range]);
                            let text = bytes.map(std::str::from_utf8).transpose();
                            column.push(text.map_err(|_| self.stray("text that is no UTF-8"))?)?;
                        }
                        rows += 1;
                    }
                    Message::PortalSuspended => break,
                    Message::CommandComplete(_) | Message::EmptyQueryResponse => more = false,
                    _ => return Err(self.stray("among rows").into()),
                }
            }
            if rows > 0 {
                let arrays: Vec<ArrayRef> = columns.iter_mut().map(Column::finish).collect();
                let batch = RecordBatch::try_new(schema.clone(), arrays);
                take(batch.map_err(|_| self.stray("columns of different lengths"))?)?;
            }
            if !more {
                break;
            }
        }
        self.send(|buffer| {
            frontend::sync(buffer);
            Ok(())
        })?;
        while !matches!(self.receive()?, Message::ReadyForQuery(_)) {}
        Ok(schema)
    }

    fn send(&mut self, fill: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), Error> {
        let mut buffer = BytesMut::new();
        let sent = fill(&mut buffer).and_then(|()| self.stream.write_all(&buffer));
        sent.map_err(|source| self.io(source))
    }

    /// The next message that is an answer; a server's error is one of ours.
    fn receive(&mut self) -> Result<Message, Error> {
        loop {
            let message = Message::parse(&mut self.read);
            match message.map_err(|source| self.io(source))? {
                Some(Message::ErrorResponse(body)) => return Err(self.refused(&body)),
                Some(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                Some(message) => return Ok(message),
                None => {
                    let mut part = [0; 65_536];
                    let n = self.stream.read(&mut part).map_err(|source| self.io(source))?;
                    if n == 0 {
                        let end = io::ErrorKind::UnexpectedEof;
                        return Err(self.io(io::Error::new(end, "the server hung up")));
                    }
                    self.read.extend_from_slice(&part[..n]);
                }
            }
        }
    }

    fn refused(&self, body: &ErrorResponseBody) -> Error {
        let (mut message, mut code) = (String::new(), String::new());
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            match field.type_() {
                b'M' => message = String::from_utf8_lossy(field.value_bytes()).into_owned(),
                b'C' => code = String::from_utf8_lossy(field.value_bytes()).into_owned(),
                _ => {}
            }
        }
        let fix = match code.as_str() {
            "28P01" => "; check user and password, in the URL or PGPASSWORD",
            "28000" => "; pg_hba.conf lets this user in only in another way (TLS, other hosts)",
            "3D000" => "; check the database's name in the URL",
            "42P01" => "; check the table's name and schema, and that this user sees it",
            "42501" => "; GRANT SELECT to this user",
            "25006" => "; only reading is allowed here",
            _ => "",
        };
        Error::Server { at: self.at.clone(), message, code, fix }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io { at: self.at.clone(), source }
    }

    fn stray(&self, what: &'static str) -> Error {
        Error::Protocol { at: self.at.clone(), what }
    }

    fn no_way_in(&self, what: &'static str) -> Error {
        Error::Authentication { at: self.at.clone(), what }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A courtesy: the server frees the session at once. It does so too when the line is cut.
        let _ = self.send(|buffer| {
            frontend::terminate(buffer);
            Ok(())
        });
    }
}

/// A bare name, with or without its schema, is a table; everything else is a query.
fn as_query(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_.\"$".contains(c);
    match text.trim().trim_end_matches(';') {
        name if name.chars().all(plain) => format!("SELECT * FROM {name}"),
        query => query.to_owned(),
    }
}

/// The URL without its password, for messages.
pub fn hide_password(url: &str) -> String {
    let Some((head, tail)) = url.rsplit_once('@') else { return url.to_owned() };
    match head.split_once("://").map(|(scheme, user)| (scheme, user.split_once(':'))) {
        Some((scheme, Some((user, _)))) => format!("{scheme}://{user}@{tail}"),
        _ => url.to_owned(),
    }
}

/// `%40` is `@`.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: u8| char::from(b).to_digit(16);
            bytes.push((digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A column in the making.
struct Column {
    name: String,
    kind: Kind,
    values: Values,
}

enum Values {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Time(TimestampMicrosecondBuilder),
    Text(StringBuilder),
    List(ListBuilder<StringBuilder>),
}

/// Decimal digits that a float keeps.
const FLOAT_DIGITS: usize = 15;

impl Column {
    fn new(name: &str, oid: Oid, modifier: i32) -> Result<Self, Error> {
        // The numbers are those of the catalogue pg_type; they never change.
        let kind = match oid {
            16 => Kind::Bool,
            20 | 21 | 23 | 26 => Kind::Int,
            700 | 701 => Kind::Float,
            1700 => match (modifier - 4) as u32 {
                whole if modifier >= 4 && whole & 0x7ff == 0 && whole >> 16 <= 18 => Kind::Int,
                _ => Kind::Float,
            },
            1082 | 1114 | 1184 => Kind::Time,
            1000 | 1002 | 1005 | 1007 | 1009 | 1014 | 1015 | 1016 | 1021 | 1022 | 1028 | 1231
            | 2951 => Kind::TextList,
            17 => {
                let fix = "leave it out, or select encode(column, 'hex')";
                return Err(Error::Type { column: name.to_owned(), found: "bytea", fix });
            }
            _ => Kind::Text,
        };
        let values = match kind {
            Kind::Bool => Values::Bool(BooleanBuilder::new()),
            Kind::Int => Values::Int(Int64Builder::new()),
            Kind::Float => Values::Float(Float64Builder::new()),
            Kind::Time => Values::Time(
                TimestampMicrosecondBuilder::new().with_data_type(Kind::Time.data_type()),
            ),
            Kind::Text => Values::Text(StringBuilder::new()),
            Kind::TextList => Values::List(ListBuilder::new(StringBuilder::new())),
        };
        Ok(Self { name: name.to_owned(), kind, values })
    }

    fn push(&mut self, text: Option<&str>) -> Result<(), Error> {
        let name = &self.name;
        let wrong = |why, fix| {
            let value = text.unwrap_or("").chars().take(60).collect();
            Error::Value { column: name.clone(), value, why, fix }
        };
        let cast = "cast the column to text in the query";
        match &mut self.values {
            Values::Bool(values) => values.append_option(text.map(|text| text == "t")),
            Values::Int(values) => {
                let value = text.map(str::parse::<i64>).transpose();
                values.append_option(value.map_err(|_| wrong("is no 64-bit integer", cast))?);
            }
            Values::Float(values) => {
                if text.is_some_and(|text| whole_digits(text) > FLOAT_DIGITS) {
                    return Err(wrong("has more digits than a float keeps", cast));
                }
                let value = text.map(str::parse::<f64>).transpose();
                values.append_option(value.map_err(|_| wrong("is no number", cast))?);
            }
            Values::Time(values) => {
                let why = "is no time that can be kept";
                let value = text.map(|text| time_us(text).ok_or_else(|| wrong(why, cast)));
                values.append_option(value.transpose()?);
            }
            Values::Text(values) => values.append_option(text),
            Values::List(values) => match text {
                None => values.append_null(),
                Some(text) => {
                    let fix = "select an array of one dimension";
                    let parts = elements(text).ok_or_else(|| wrong("is no plain list", fix))?;
                    parts.iter().for_each(|part| values.values().append_option(part.as_deref()));
                    values.append(true);
                }
            },
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match &mut self.values {
            Values::Bool(values) => Arc::new(values.finish()),
            Values::Int(values) => Arc::new(values.finish()),
            Values::Float(values) => Arc::new(values.finish()),
            Values::Time(values) => Arc::new(values.finish()),
            Values::Text(values) => Arc::new(values.finish()),
            Values::List(values) => Arc::new(values.finish()),
        }
    }
}

/// Digits of a whole number; fractions are rounded by every float and count as none.
fn whole_digits(text: &str) -> usize {
    let digits = text.trim_start_matches('-');
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.trim_start_matches('0').trim_end_matches('0').len()
    } else {
        0
    }
}

/// A date or timestamp in ISO form, with `+00` or without a zone, in microseconds of the epoch.
fn time_us(text: &str) -> Option<i64> {
    let text = text.strip_suffix("+00").unwrap_or(text);
    if let Ok(time) = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f") {
        return Some(time.and_utc().timestamp_micros());
    }
    let date: chrono::NaiveDate = text.parse().ok()?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
}

/// The elements of `{a,"b, c",NULL}`; `None` for arrays in arrays.
fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let inside = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut found = Vec::new();
    let mut rest = inside.chars().peekable();
    while rest.peek().is_some() {
        let mut element = String::new();
        let quoted = rest.next_if_eq(&'"').is_some();
        loop {
            match rest.next() {
                Some('"') if quoted => {
                    rest.next_if_eq(&',');
                    break;
                }
                Some('\\') => element.push(rest.next()?),
                Some(',') if !quoted => break,
                Some('{') if !quoted => return None,
                Some(c) => element.push(c),
                None if quoted => return None,
                None => break,
            }
        }
        found.push((quoted || element != "NULL").then_some(element));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_its_password_never_shown() {
        let url = "postgres://me:s%40cret@db.example:6000/shop";
        let address = Address::parse(url).unwrap();
        assert_eq!(address.password.as_deref(), Some("s@cret"));
        assert_eq!((address.host.as_str(), address.port), ("db.example", 6000));
        assert_eq!(format!("{address:?}"), "postgres://me@db.example:6000/shop");
        assert_eq!(hide_password(url), "postgres://me@db.example:6000/shop");
        assert_eq!(Address::parse("postgresql://me:x@h/d?sslmode=prefer").unwrap().port, 5432);
        for wrong in
            ["mysql://a@b/c", "postgres://h/d", "postgres://u:secret@h", "postgres://u@h:x/d"]
        {
            let error = Address::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("USER[:PASSWORD]@HOST") && !error.contains("secret"), "{error}");
        }
        let error = Address::parse("postgres://u:secret@h/d?sslmode=require").unwrap_err();
        assert!(error.to_string().contains("tunnel"), "{error}");
    }

    #[test]
    fn arrays_are_taken_apart() {
        let some = |text: &str| Some(text.to_owned());
        assert!(elements("{}").unwrap().is_empty());
        assert_eq!(elements("{a,NULL,\"NULL\"}").unwrap(), [some("a"), None, some("NULL")]);
        assert_eq!(
            elements(r#"{"x, y","say \"z\"",""}"#).unwrap(),
            [some("x, y"), some("say \"z\""), some("")]
        );
        assert!(elements("{{1},{2}}").is_none());
        assert!(elements("[0:1]={1,2}").is_none());
    }

    #[test]
    fn times_and_digits() {
        assert_eq!(time_us("1970-01-02 00:00:00.5+00"), Some(86_400_500_000));
        assert_eq!(time_us("1970-01-02"), Some(86_400_000_000));
        assert_eq!(time_us("infinity"), None);
        assert_eq!((whole_digits("-1200"), whole_digits("0.1")), (2, 0));
        assert_eq!(whole_digits("12345678901234567"), 17);
        assert_eq!(as_query(" shop.items; "), "SELECT * FROM shop.items");
        assert_eq!(as_query("SELECT 1"), "SELECT 1");
    }
}
