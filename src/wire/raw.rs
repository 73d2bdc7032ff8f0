//! A connection whose messages we read ourselves: what the SQL client cannot do (replication, COPY as it travels).

use bytes::{Buf, Bytes};
use postgres_protocol::message::frontend;

use super::messages::{Message, Messages};
use super::pinned;
use super::server_error::ServerError;
use super::startup::{Greeting, log_in};
use super::transport::Window;
use super::{CancelToken, Endpoint, Error};

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An ordinary backend.
    Sql,
    /// A walsender for logical replication (`replication=database`), which also takes SQL.
    Replication,
}

/// A row of a simple query: text output, `None` for NULL.
pub type Row = Vec<Option<Bytes>>;

/// A logged-in connection between two commands.
#[derive(Debug)]
pub struct RawConnection {
    pub(super) messages: Messages,
    pub(super) endpoint: Endpoint,
    greeting: Greeting,
    /// A copy was begun and not ended: the next answer would belong to it.
    pub(super) in_copy: bool,
}

/// Connects; the settings of [`super::connect`] are pinned. `purpose` goes into `application_name`.
pub async fn connect_raw(endpoint: &Endpoint, mode: Mode, purpose: &str) -> Result<RawConnection, Error> {
    match mode {
        Mode::Sql => {
            let mut connection = connect_raw_plain(endpoint, purpose).await?;
            connection.pin().await?;
            Ok(connection)
        }
        Mode::Replication => {
            let application_name = pinned::application_name(endpoint, purpose);
            let mut parameters = vec![("replication", "database"), ("application_name", &application_name)];
            parameters.extend(pinned::for_walsender().map(|(name, value)| -> (&str, &str) { (name, value) }));
            let mut connection = RawConnection::open(endpoint, &parameters, Window::Narrow).await?;
            for (setting, value) in pinned::later_for_walsender(connection.server_version_num()) {
                connection.set(setting, value).await?;
            }
            Ok(connection)
        }
    }
}

/// Connects and pins nothing.
pub(super) async fn connect_raw_plain(endpoint: &Endpoint, purpose: &str) -> Result<RawConnection, Error> {
    let application_name = pinned::application_name(endpoint, purpose);
    let parameters = [("client_encoding", "UTF8"), ("application_name", application_name.as_str())];
    RawConnection::open(endpoint, &parameters, Window::AsItComes).await
}

impl RawConnection {
    async fn open(endpoint: &Endpoint, parameters: &[(&str, &str)], window: Window) -> Result<Self, Error> {
        let (messages, greeting) = log_in(endpoint, parameters, window).await?;
        Ok(Self { messages, endpoint: endpoint.clone(), greeting, in_copy: false })
    }

    /// As `server_version_num`; 0 when the server does not report its version (PgBouncer's console).
    pub fn server_version_num(&self) -> u32 {
        self.greeting.parameters.get("server_version").map_or(0, |text| version_num(text))
    }

    /// The backend's process on the server.
    pub fn backend_pid(&self) -> i32 {
        self.greeting.backend_pid
    }

    /// What cancels the command under way, from another connection.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::new(self.endpoint.clone(), self.greeting.backend_pid, self.greeting.cancel_key)
    }

    /// Runs `sql` and returns the rows of its last statement that has any.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.ask(sql).await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let message = self.next().await?;
            match message.tag {
                b'T' => rows.clear(),
                b'D' => rows.push(self.read_row(message.body)?),
                b'C' | b'I' => {}
                b'E' => failed = Some(ServerError::read(&message.body)),
                b'Z' => break,
                tag => return Err(self.misunderstood(tag, "a query")),
            }
        }
        failed.map_or(Ok(rows), |source| Err(self.refused(source)))
    }

    /// Says good-bye, so that the server does not log a lost connection.
    pub async fn close(mut self) -> Result<(), Error> {
        frontend::terminate(&mut self.messages.outbox);
        self.messages.shut_down().await.map_err(|error| self.lost(error))
    }

    /// Sets everything in one round trip; only when that fails, one by one to tell which.
    async fn pin(&mut self) -> Result<(), Error> {
        let version = self.server_version_num();
        let all: Vec<String> =
            pinned::for_server(version).map(|(name, value)| pinned::statement(name, value)).collect();
        let Err(error) = self.simple_query(&all.join("; ")).await else { return Ok(()) };
        let Error::Statement { .. } = error else { return Err(error) };
        for (setting, value) in pinned::for_server(version) {
            self.set(setting, value).await?;
        }
        Err(error)
    }

    async fn set(&mut self, setting: &'static str, value: &str) -> Result<(), Error> {
        match self.simple_query(&pinned::statement(setting, value)).await {
            Err(Error::Statement { endpoint, source }) => Err(Error::Pin { endpoint, setting, source }),
            set => set.map(drop),
        }
    }

    pub(super) async fn ask(&mut self, sql: &str) -> Result<(), Error> {
        if self.in_copy {
            return Err(self.protocol("a copy on this connection was left unfinished".to_owned()));
        }
        frontend::query(sql, &mut self.messages.outbox).map_err(|error| self.protocol(error.to_string()))?;
        self.messages.send().await.map_err(|error| self.lost(error))
    }

    /// The next message that is an answer. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Message, Error> {
        loop {
            let message = self.messages.next().await.map_err(|error| self.lost(error))?;
            if !is_aside(&message) {
                return Ok(message);
            }
        }
    }

    /// Reads on until the server is ready for the next command.
    pub(super) async fn until_ready(&mut self) -> Result<(), Error> {
        while self.next().await?.tag != b'Z' {}
        self.in_copy = false;
        Ok(())
    }

    fn read_row(&self, mut body: Bytes) -> Result<Row, Error> {
        read_row(&mut body).ok_or_else(|| self.protocol("a row is cut short".to_owned()))
    }

    pub(super) fn lost(&self, source: std::io::Error) -> Error {
        Error::Connection { endpoint: self.endpoint.to_string(), source }
    }

    pub(super) fn refused(&self, source: ServerError) -> Error {
        Error::Statement { endpoint: self.endpoint.to_string(), source }
    }

    pub(super) fn protocol(&self, what: String) -> Error {
        Error::Protocol { endpoint: self.endpoint.to_string(), what }
    }

    pub(super) fn misunderstood(&self, tag: u8, during: &str) -> Error {
        self.protocol(format!("a message of type {:?} during {during}", char::from(tag)))
    }

    pub(super) fn into_parts(self) -> (Messages, Endpoint, Greeting) {
        (self.messages, self.endpoint, self.greeting)
    }
}

/// What a server may say at any time: a notice, a changed setting, a notification ("Asynchronous Operations").
pub(super) fn is_aside(message: &Message) -> bool {
    if message.tag == b'N' {
        let notice = ServerError::read(&message.body);
        tracing::debug!(%notice, "server notice");
    }
    matches!(message.tag, b'N' | b'S' | b'A')
}

fn read_row(body: &mut Bytes) -> Option<Row> {
    let count = body.try_get_u16().ok()?;
    let value = |_| match body.try_get_i32().ok()? {
        -1 => Some(None),
        length => {
            let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
            Some(Some(body.split_to(length)))
        }
    };
    (0..count).map(value).collect()
}

/// `15.20 (Debian 15.20-1)` → 150020; `9.6.24` → 90624; `16beta1` → 160000.
fn version_num(text: &str) -> u32 {
    let number = |part: &str| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    };
    let mut parts = text.split_whitespace().next().unwrap_or_default().split('.').map(number);
    let mut next = || parts.next().unwrap_or(0);
    match next() {
        major if major >= 10 => major * 10_000 + next(),
        major => major * 10_000 + next() * 100 + next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_versions_servers_print() {
        for (text, expected) in [
            ("15.20 (Debian 15.20-0+deb12u1)", 150_020),
            ("18beta1", 180_000),
            ("9.6.24", 90_624),
            ("13.0", 130_000),
            ("", 0),
        ] {
            assert_eq!(version_num(text), expected, "{text}");
        }
    }

    #[test]
    fn a_row_that_is_cut_short_is_no_row() {
        let whole = b"\0\x02\0\0\0\x01a\xff\xff\xff\xff";
        assert_eq!(read_row(&mut Bytes::from_static(whole)), Some(vec![Some(Bytes::from_static(b"a")), None]));
        for end in 0..whole.len() {
            assert_eq!(read_row(&mut Bytes::copy_from_slice(&whole[..end])), None);
        }
    }
}
