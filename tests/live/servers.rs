//! The harness itself: what every other live test relies on.

use std::path::Path;
use std::time::Duration;

use changeover::demo::{PgBouncer, PoolerOptions, PostgresPrograms, StopMode, Upstream};

use crate::support::{Db, cluster, cluster_of, source_and_target};

#[tokio::test]
async fn a_pair_is_two_clusters_with_logical_decoding() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    assert_eq!(source.scalar("SHOW wal_level").await, "logical");
    let identity = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(source.scalar(identity).await, target.scalar(identity).await);
    source.exec("CREATE TABLE t (id int, name text); INSERT INTO t VALUES (2, 'b c'), (1, NULL)").await;
    assert_eq!(source.rows("t").await, ["(1,)", "(2,\"b c\")"]);
}

#[tokio::test]
async fn every_installed_version_starts() {
    for programs in PostgresPrograms::find().unwrap() {
        // Twice: the first may be the one that makes the template.
        for _ in 0..2 {
            let server = cluster_of(programs.major);
            let db = Db::connect(&server.url("postgres")).await;
            assert_eq!(db.major_version().await, programs.major);
        }
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_its_data() {
    let mut server = cluster(|options| options.setting("fsync", "on"));
    let url = server.url("postgres");
    Db::connect(&url).await.exec("CREATE TABLE t AS SELECT 7 AS n").await;
    for mode in [StopMode::Kill, StopMode::Immediate, StopMode::Fast] {
        server.restart(mode).unwrap();
        assert_eq!(Db::connect(&url).await.rows("t").await, ["(7)"], "{mode:?}");
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_cluster() {
    let server = cluster(|options| options);
    let dir = server.socket_dir().to_owned();
    let postmaster = std::fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let process = format!("/proc/{}", postmaster.lines().next().unwrap());
    assert!(Path::new(&process).exists());
    drop(server);
    assert!(!dir.exists() && !Path::new(&process).exists());
}

#[tokio::test]
async fn the_pooler_leads_to_the_server_its_fragment_names() {
    let server = cluster(|options| options);
    let upstream = Upstream {
        name: "app".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        dbname: "postgres".to_owned(),
    };
    let pooler = PgBouncer::start(&PoolerOptions { databases: vec![upstream], pool_size: 4 }).unwrap();
    let client = Db::connect(&pooler.url("app")).await;
    assert_eq!(client.scalar("SHOW port").await, server.port().to_string());
    let fragment = std::fs::read_to_string(pooler.databases_file()).unwrap();
    assert!(fragment.contains(&format!("port={}", server.port())), "{fragment}");
    let admin = Db::connect(&pooler.admin_url()).await;
    assert!(!admin.query_text("SHOW DATABASES").await.is_empty());
    tokio::time::timeout(Duration::from_secs(5), admin.exec("PAUSE app")).await.unwrap();
}
