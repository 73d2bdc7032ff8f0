//! Servers for tests.

use std::env;

use changeover::demo::{ClusterOptions, PgCluster, PostgresPrograms};

use super::Db;

/// One PostgreSQL database for a test: on a cluster of its own, or a database of its own on a server that the environment
/// names.
pub struct Server {
    cluster: Option<PgCluster>,
    url: String,
}

/// A source and a target.
pub struct Pair {
    pub source: Server,
    pub target: Server,
}

/// A pair of the usual version (or the two servers that the environment names), with nothing in them.
pub async fn source_and_target() -> Pair {
    let (source, target) = tokio::join!(end("CHANGEOVER_TEST_SOURCE_URL"), end("CHANGEOVER_TEST_TARGET_URL"));
    Pair { source, target }
}

/// A server of the usual version: `CHANGEOVER_TEST_POSTGRES` (a major version), else what `PostgresPrograms::usual` says.
pub fn server() -> Server {
    Server::from(cluster(|options| options))
}

/// A cluster of the usual version, its options changed by `with`.
pub fn cluster(with: impl FnOnce(ClusterOptions) -> ClusterOptions) -> PgCluster {
    let programs = usual().unwrap_or_else(explain);
    PgCluster::start(with(ClusterOptions::fast(programs))).unwrap_or_else(explain)
}

/// A cluster of one major version. Fails with the line that installs it when it is not there.
pub fn cluster_of(major: u32) -> PgCluster {
    let programs = PostgresPrograms::of_major(major).unwrap_or_else(explain);
    PgCluster::start(ClusterOptions::fast(programs)).unwrap_or_else(explain)
}

impl Pair {
    /// Of two major versions.
    pub fn of(source: u32, target: u32) -> Self {
        Self { source: cluster_of(source).into(), target: cluster_of(target).into() }
    }
}

impl From<PgCluster> for Server {
    fn from(cluster: PgCluster) -> Self {
        Self { url: cluster.url("postgres"), cluster: Some(cluster) }
    }
}

impl Server {
    /// As a superuser, without TLS.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn connect(&self) -> Db {
        Db::connect(&self.url).await
    }

    /// The cluster, for tests that stop, kill or reconfigure it. Panics for a server that the environment names.
    pub fn cluster(&mut self) -> &mut PgCluster {
        self.cluster
            .as_mut()
            .expect("this test needs a server of its own: unset CHANGEOVER_TEST_SOURCE_URL and _TARGET_URL")
    }
}

/// Fails the test, with the line that installs what is missing.
fn explain<T>(error: changeover::demo::Error) -> T {
    panic!("{}: {:?}", changeover::telemetry::chain(&error), error.disposition())
}

fn usual() -> Result<PostgresPrograms, changeover::demo::Error> {
    match env::var("CHANGEOVER_TEST_POSTGRES") {
        Ok(major) => PostgresPrograms::of_major(major.parse().expect("CHANGEOVER_TEST_POSTGRES is a major version")),
        Err(_) => PostgresPrograms::usual(),
    }
}

async fn end(variable: &str) -> Server {
    match env::var(variable) {
        Ok(url) => Server { url: database_on(&url).await, cluster: None },
        Err(_) => server(),
    }
}

/// Makes a database on somebody else's server. It stays when the test fails, to be looked at.
async fn database_on(url: &str) -> String {
    let name = format!("changeover_test_{:08x}", fastrand::u32(..));
    Db::connect(url).await.exec(&format!("CREATE DATABASE {name}")).await;
    let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
    let (server, _) = base.rsplit_once('/').expect("a URL with a database");
    format!("{server}/{name}?{parameters}")
}
