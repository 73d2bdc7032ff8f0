//! Connections: every way of protecting them and of proving who we are, against servers that insist on it.

use std::path::PathBuf;
use std::time::Duration;

use changeover::demo::{PgBouncer, PgCluster, PoolerOptions, StopMode, Upstream};
use changeover::model::{Disposition, Secret};
use changeover::wire::{self, Endpoint, Error, Mode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use crate::support::cluster;

const LOCAL: &str = "local all postgres trust\n";

/// A certificate authority, a server that shows a certificate of it for `localhost`, and the files a client needs.
struct Protected {
    server: PgCluster,
    files: tempdir::Dir,
}

/// A directory that goes with the test.
mod tempdir {
    use std::path::PathBuf;

    pub(super) struct Dir(pub(super) PathBuf);

    impl Dir {
        pub(super) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("changeover-wire-{:016x}", fastrand::u64(..)));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        /// Writes a file that only we can read, as libpq wants its keys.
        pub(super) fn write(&self, name: &str, contents: &str) -> PathBuf {
            use std::os::unix::fs::PermissionsExt;
            let path = self.0.join(name);
            std::fs::write(&path, contents).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

struct Authority {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { certificate: parameters.self_signed(&key).unwrap(), key }
    }

    /// Certificate and key in PEM form.
    fn sign(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = parameters.signed_by(&key, &self.certificate, &self.key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

impl Protected {
    fn start(hba: &str) -> Self {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let (certificate, key) = ours.sign("x", &["localhost"]);
        let (client_certificate, client_key) = ours.sign("postgres", &[]);
        let files = tempdir::Dir::new();
        files.write("ours.crt", &ours.certificate.pem());
        files.write("theirs.crt", &theirs.certificate.pem());
        files.write("client.crt", &client_certificate);
        files.write("client.key", &client_key);
        let server = cluster(|options| {
            options
                .setting("ssl", "on")
                .setting("ssl_ca_file", "ca.crt")
                .hba(&format!("{LOCAL}{hba}"))
                .file("server.crt", certificate)
                .file("server.key", key)
                .file("ca.crt", ours.certificate.pem())
        });
        Self { server, files }
    }

    /// Over TCP to `host`, with these parameters; `{}` in them is the directory of the files.
    fn endpoint(&self, host: &str, parameters: &str) -> Endpoint {
        let parameters = parameters.replace("{}", &self.files.0.display().to_string());
        Endpoint::parse(&format!("postgres://postgres@{host}:{}/postgres?{parameters}", self.server.port())).unwrap()
    }

    /// Whether the connection is inside TLS, by the server's account, for both kinds of connection.
    async fn is_inside_tls(&self, host: &str, parameters: &str) -> Result<bool, Error> {
        let endpoint = self.endpoint(host, parameters);
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let mut raw = wire::connect_raw(&endpoint, Mode::Replication, "test").await?;
        let by_raw = raw.simple_query(sql).await?[0][0].as_deref() == Some(b"t");
        raw.close().await?;
        let session = wire::connect(&endpoint, "test").await?;
        let by_session: bool = session.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(by_raw, by_session);
        Ok(by_session)
    }
}

fn halts(error: &Error) -> bool {
    matches!(error.disposition(), Disposition::Halt { .. })
}

#[tokio::test]
async fn every_sslmode_protects_as_far_as_it_says() {
    let protected = Protected::start("host all all all trust\n");
    for (host, parameters, expected) in [
        ("localhost", "sslmode=disable", false),
        ("localhost", "sslmode=allow", false),
        ("localhost", "sslmode=prefer", true),
        ("localhost", "", true),
        ("localhost", "sslmode=require", true),
        ("localhost", "sslmode=require&sslrootcert={}/ours.crt", true),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={}/ours.crt", true),
        ("localhost", "sslmode=verify-full&sslrootcert={}/ours.crt", true),
        ("localhost", "sslmode=verify-full&sslrootcert={}/ours.crt&hostaddr=127.0.0.1", true),
        // A chain that does not hold is no reason to stay out for the one that only prefers TLS.
        ("localhost", "sslmode=prefer&sslrootcert={}/theirs.crt", false),
    ] {
        assert_eq!(protected.is_inside_tls(host, parameters).await.unwrap(), expected, "{host} {parameters}");
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_refused() {
    let protected = Protected::start("host all all all trust\n");
    for (host, parameters) in [
        ("localhost", "sslmode=require&sslrootcert={}/theirs.crt"),
        ("localhost", "sslmode=verify-ca&sslrootcert={}/theirs.crt"),
        ("localhost", "sslmode=verify-full&sslrootcert={}/theirs.crt"),
        ("127.0.0.1", "sslmode=verify-full&sslrootcert={}/ours.crt"),
    ] {
        let error = protected.is_inside_tls(host, parameters).await.unwrap_err();
        assert!(matches!(error, Error::Certificate { .. }) && halts(&error), "{host} {parameters}: {error:?}");
    }
    for parameters in ["sslmode=verify-full", "sslmode=verify-full&sslrootcert={}/none.crt"] {
        let error = protected.is_inside_tls("localhost", parameters).await.unwrap_err();
        assert!(matches!(error, Error::TlsSetup { .. }) && halts(&error), "{parameters}: {error:?}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_believed_where_it_is_named() {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
    // As `openssl req -x509` makes it.
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap();
    let files = tempdir::Dir::new();
    files.write("ours.crt", &certificate.pem());
    let server = cluster(|options| {
        options.setting("ssl", "on").file("server.crt", certificate.pem()).file("server.key", key.serialize_pem())
    });
    let protected = Protected { server, files };
    assert!(protected.is_inside_tls("localhost", "sslmode=verify-full&sslrootcert={}/ours.crt").await.unwrap());
    assert!(protected.is_inside_tls("127.0.0.1", "sslmode=verify-full&sslrootcert={}/ours.crt").await.is_err());
}

#[tokio::test]
async fn the_other_protection_is_tried_where_the_mode_allows_it() {
    let insists = Protected::start("hostssl all all all trust\n");
    assert!(insists.is_inside_tls("localhost", "sslmode=allow").await.unwrap());
    let error = insists.is_inside_tls("localhost", "sslmode=disable").await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && halts(&error), "{error:?}");
    let refuses = Protected::start("hostnossl all all all trust\n");
    assert!(!refuses.is_inside_tls("localhost", "sslmode=prefer").await.unwrap());
    assert!(refuses.is_inside_tls("localhost", "sslmode=require").await.is_err());
}

#[tokio::test]
async fn a_server_without_tls_is_left_alone_by_who_insists_on_it() {
    let server = cluster(|options| options);
    let endpoint = |mode| Endpoint::parse(&format!("{}?sslmode={mode}", server.url("postgres"))).unwrap();
    assert!(wire::connect(&endpoint("prefer"), "test").await.is_ok());
    let error = wire::connect(&endpoint("require"), "test").await.err().unwrap();
    assert!(matches!(error, Error::NoTls { .. }) && halts(&error), "{error:?}");
}

#[tokio::test]
async fn a_client_certificate_lets_us_in() {
    let protected = Protected::start("hostssl all all all cert\n");
    let with = "sslmode=verify-full&sslrootcert={}/ours.crt&sslcert={}/client.crt&sslkey={}/client.key";
    assert!(protected.is_inside_tls("localhost", with).await.unwrap());
    let error = protected.is_inside_tls("localhost", "sslmode=require").await.unwrap_err();
    assert!(halts(&error), "{error:?}");
}

#[tokio::test]
async fn passwords_are_proven_in_each_of_the_servers_ways() {
    let protected = Protected::start(
        "host all scram all scram-sha-256\nhost all md5 all md5\nhost all plain all password\nhost all all all trust\n",
    );
    let admin = wire::connect(&protected.endpoint("localhost", ""), "test").await.unwrap();
    admin
        .batch_execute(
            "SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD 'p'; SET password_encryption = \
             'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD 'p'; CREATE ROLE plain LOGIN PASSWORD 'p'",
        )
        .await
        .unwrap();
    let endpoint = |user: &str, password: &str, parameters: &str| {
        let port = protected.server.port();
        let url = format!("postgres://{user}:{password}@localhost:{port}/postgres?{parameters}");
        Endpoint::parse(&url).unwrap()
    };
    for user in ["scram", "md5", "plain"] {
        for parameters in ["sslmode=require", "sslmode=disable", "sslmode=require&channel_binding=disable"] {
            let session = wire::connect(&endpoint(user, "p", parameters), "test").await.unwrap();
            let current: String = session.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
            assert_eq!(current, user);
        }
        let error = wire::connect(&endpoint(user, "hunter2", ""), "test").await.err().unwrap();
        assert_eq!(error.server().unwrap().sqlstate(), "28P01");
        assert!(halts(&error) && !format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    assert!(wire::connect(&endpoint("scram", "p", "sslmode=require&channel_binding=require"), "test").await.is_ok());
    for (user, parameters) in [
        ("scram", "sslmode=disable&channel_binding=require"),
        ("md5", "channel_binding=require"),
        ("plain", "channel_binding=require"),
        ("postgres", "channel_binding=require"),
    ] {
        let error = wire::connect(&endpoint(user, "p", parameters), "test").await.err().unwrap();
        assert!(matches!(error, Error::Authenticate { .. }) && halts(&error), "{user} {parameters}: {error:?}");
    }
    let without = protected.endpoint("localhost", "user=scram");
    let error = wire::connect(&without, "test").await.err().unwrap();
    assert!(matches!(error, Error::PasswordMissing { .. }), "{error:?}");
    assert!(wire::connect(&without.with_password(Secret::new("p")), "test").await.is_ok());
}

#[tokio::test]
async fn settings_of_the_role_do_not_reach_our_connections() {
    let server = cluster(|options| options);
    let endpoint = Endpoint::parse(&server.url("postgres")).unwrap();
    let admin = wire::connect(&endpoint, "test").await.unwrap();
    admin
        .batch_execute(
            "ALTER ROLE postgres SET DateStyle = 'SQL, DMY'; ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo';
             ALTER ROLE postgres SET IntervalStyle = 'iso_8601'; ALTER ROLE postgres SET bytea_output = 'escape';
             ALTER ROLE postgres SET extra_float_digits = -5; ALTER ROLE postgres SET statement_timeout = '1h';
             ALTER DATABASE postgres SET search_path = 'evil'; ALTER ROLE postgres SET row_security = on;
             ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
        )
        .await
        .unwrap();
    let sql = "SELECT timestamptz '2024-02-03 04:05:06.7+00' || ' ' || interval '1 day 2 hours' || ' ' || \
               bytea '\\x01ff' || ' ' || (0.1::float8 + 0.2::float8) || ' ' || current_setting('statement_timeout') || \
               ' ' || current_setting('search_path') || current_setting('row_security') || \
               current_setting('transaction_isolation') || current_setting('application_name')";
    let expected =
        "2024-02-03 04:05:06.7+00 1 day 02:00:00 \\x01ff 0.30000000000000004 0 offread committedchangeover t";
    let session = wire::connect(&endpoint, "t").await.unwrap();
    let by_session: String = session.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(by_session.replace("\"\"", ""), expected);
    for mode in [Mode::Sql, Mode::Replication] {
        let mut raw = wire::connect_raw(&endpoint, mode, "t").await.unwrap();
        let rows = raw.simple_query(sql).await.unwrap();
        let text = String::from_utf8(rows[0][0].as_ref().unwrap().to_vec()).unwrap();
        assert_eq!(text.replace("\"\"", ""), expected, "{mode:?}");
    }
}

#[tokio::test]
async fn copied_bytes_pass_from_server_to_server_untouched() {
    let server = cluster(|options| options);
    let endpoint = Endpoint::parse(&server.socket_dsn("postgres")).unwrap();
    let session = wire::connect(&endpoint, "test").await.unwrap();
    session
        .batch_execute(
            "CREATE TABLE public.a AS SELECT n, repeat(md5(n::text), n % 100) AS t FROM generate_series(1, 20000) n;
             INSERT INTO public.a VALUES (0, repeat('x', 3000000)), (NULL, '\\N'), (-1, E'a\\tb\\n');
             CREATE TABLE public.b (LIKE public.a)",
        )
        .await
        .unwrap();
    let mut from = wire::connect_raw(&endpoint, Mode::Sql, "from").await.unwrap();
    let mut to = wire::connect_raw(&endpoint, Mode::Sql, "to").await.unwrap();
    for (format, extra) in [("text", 0), ("binary", 1)] {
        let mut rows = from.copy_out(&format!("COPY public.a TO STDOUT (FORMAT {format})")).await.unwrap();
        let mut copy = to.copy_in(&format!("COPY public.b FROM STDIN (FORMAT {format})")).await.unwrap();
        let mut frame_count = 0;
        while let Some(chunk) = rows.next().await.unwrap() {
            frame_count += chunk.frame_count;
            copy.write(&chunk.frames).await.unwrap();
        }
        assert_eq!(rows.row_count(), Some(20_003));
        assert_eq!(frame_count, 20_003 + extra);
        assert_eq!(copy.finish().await.unwrap(), 20_003);
        let sql = "WITH gone AS (DELETE FROM public.b RETURNING *) SELECT count(*) FROM \
                   (SELECT * FROM public.a EXCEPT ALL SELECT * FROM gone) d";
        assert_eq!(session.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    }
}

#[tokio::test]
async fn a_copy_that_fails_says_why_and_leaves_the_connection_usable() {
    let server = cluster(|options| options);
    let endpoint = Endpoint::parse(&server.url("postgres")).unwrap();
    let mut raw = wire::connect_raw(&endpoint, Mode::Sql, "test").await.unwrap();
    raw.simple_query("CREATE TABLE public.t (n int)").await.unwrap();
    let frame = |text: &[u8]| [&b"d"[..], &u32::try_from(text.len() + 4).unwrap().to_be_bytes(), text].concat();

    // So much that the socket takes it in pieces: the error comes in the middle of a message.
    let frames = frame(b"hunter2\n").repeat(500_000);
    for _ in 0..20 {
        let mut copy = raw.copy_in("COPY public.t FROM STDIN").await.unwrap();
        let failed = loop {
            if let Err(error) = copy.write(&frames).await {
                break error;
            }
        };
        assert_eq!(failed.server().unwrap().sqlstate(), "22P02");
        assert!(!format!("{failed:?} {failed}").contains("hunter2"), "{failed:?}");
    }

    let copy = raw.copy_in("COPY public.t FROM STDIN").await.unwrap();
    copy.fail("enough").await.unwrap();
    let mut copy = raw.copy_in("COPY public.t FROM STDIN").await.unwrap();
    copy.write_payload(b"7\n").await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 1);
    let error = raw.copy_out("COPY public.none TO STDOUT").await.err().unwrap();
    assert_eq!(error.server().unwrap().sqlstate(), "42P01");
    assert_eq!(raw.simple_query("SELECT n FROM public.t").await.unwrap()[0][0].as_deref(), Some(&b"7"[..]));

    let rows = raw.copy_out("COPY public.t TO STDOUT").await.unwrap();
    let _ = rows;
    assert!(matches!(raw.simple_query("SELECT 1").await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_statement_is_cancelled_from_outside() {
    let protected = Protected::start("hostssl all all all trust\n");
    let session = wire::connect(&protected.endpoint("localhost", "sslmode=require"), "test").await.unwrap();
    let token = session.cancel_token();
    let (waited, cancelled) = tokio::join!(session.batch_execute("SELECT pg_sleep(600)"), async {
        // The cancel may come before the statement: ask until it has ended.
        tokio::time::sleep(Duration::from_millis(100)).await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert_eq!(waited.unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test]
async fn an_error_says_whether_to_wait_or_to_act() {
    let mut server = cluster(|options| options);
    let url = server.url("postgres");
    let endpoint = Endpoint::parse(&url).unwrap();
    let unknown = wire::connect(&endpoint.with_dbname("nowhere"), "test").await.err().unwrap();
    assert!(halts(&unknown), "{unknown:?}");
    let session = wire::connect(&endpoint, "test").await.unwrap();
    server.stop(StopMode::Fast);
    let lost = session.batch_execute("SELECT 1").await.unwrap_err();
    assert_eq!(wire::disposition_of(&lost), Disposition::Retry, "{lost:?}");
    let gone = wire::connect(&endpoint, "test").await.err().unwrap();
    assert!(matches!(gone, Error::Reach { .. }) && !halts(&gone), "{gone:?}");
    server.start_again().unwrap();
    assert!(wire::connect(&endpoint, "test").await.is_ok());
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = Endpoint::parse(&format!("postgres://x@127.0.0.1:{port}/x?connect_timeout=1")).unwrap();
    let error = wire::connect(&endpoint, "test").await.err().unwrap();
    assert!(matches!(error, Error::NoAnswer { seconds: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn the_poolers_console_is_reached_without_pinning_anything() {
    let server = cluster(|options| options);
    let upstream = Upstream {
        name: "app".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        dbname: "postgres".to_owned(),
    };
    let pooler = PgBouncer::start(&PoolerOptions { databases: vec![upstream], pool_size: 4 }).unwrap();
    let console = wire::connect_plain(&Endpoint::parse(&pooler.admin_url()).unwrap(), "test").await.unwrap();
    assert!(!console.simple_query("SHOW DATABASES").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_password_comes_from_the_password_file() {
    let files = tempdir::Dir::new();
    let path: PathBuf = files.write("pgpass", "*:*:*:mover:from the file\n");
    let url = format!("postgres://mover@blue/shop?passfile={}", path.display());
    let variables = Endpoint::parse(&url).unwrap().libpq_env();
    assert!(variables.contains(&("PGPASSWORD", "from the file".to_owned())));
    assert!(!Endpoint::parse(&url).unwrap().to_string().contains("from the file"));
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Endpoint::parse(&url).unwrap_err().to_string().contains("chmod 600"));
}
