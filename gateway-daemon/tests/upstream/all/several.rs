//! Several servers of one connection: a real primary and its real hot standby.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gateway_daemon::{
    policy::Mode,
    protocol::postgres::{
        catalogs::Catalogs,
        reserved::IdentityParameters,
        serve::{ConnectError, Server as Host, Target},
        upstream::{Roots, SessionAttributes, StartupParameters, TlsMode, UpstreamSettings},
    },
};

use super::{
    certificates::Authority,
    server::{Server, credential, settings, start},
};

use SessionAttributes::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};

pub(super) fn target(attributes: SessionAttributes, addresses: &[SocketAddr]) -> Target {
    let settings = UpstreamSettings {
        tcp_deadline: Duration::from_secs(2),
        ..settings(TlsMode::Disable, &Roots::System, "127.0.0.1", "scram")
    };
    let host = |address: &SocketAddr| {
        let settings = UpstreamSettings { host: address.ip().to_string().into(), ..settings.clone() };
        Arc::new(Host { port: address.port(), settings })
    };
    Target {
        name: "orders".into(),
        servers: addresses.iter().map(host).collect(),
        attributes,
        user: "scram".into(),
        database: None,
        identity_parameters: IdentityParameters::Unset,
        accept_users: Vec::new(),
        mode: Mode::Enforce,
        catalogs: Catalogs::default(),
        withheld: None.into(),
    }
}

async fn reached(target: &Target) -> Result<SocketAddr, ConnectError> {
    target.connect(&start("postgres")).await.map(|reached| {
        assert_eq!(reached.server.port, reached.upstream.address.port());
        reached.upstream.address
    })
}

async fn refusal(target: &Target) -> String {
    reached(target).await.expect_err("refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wish_finds_its_server_and_follows_it_when_roles_change() {
    let ca = Authority::new("ca");
    let mut primary = Server::start(&ca.issue(&["localhost"]));
    let standby = primary.standby();
    let (p, s) = (primary.address, standby.address);
    for (wish, first) in [(Any, s), (ReadWrite, p), (Primary, p), (ReadOnly, s), (Standby, s), (PreferStandby, s)] {
        assert_eq!(reached(&target(wish, &[s, p])).await.unwrap(), first, "{wish}, standby first");
        let other_first = if wish == Any { p } else { first };
        assert_eq!(reached(&target(wish, &[p, s])).await.unwrap(), other_first, "{wish}, primary first");
    }
    let alone = refusal(&target(Standby, &[p])).await;
    assert!(alone.ends_with("target_session_attrs is `standby`, and it is no standby"), "{alone}");
    assert_eq!(reached(&target(PreferStandby, &[p])).await.unwrap(), p);

    // Sessions that may not write although the server is a primary.
    primary.psql("alter system set default_transaction_read_only = on");
    primary.psql("select pg_reload_conf()");
    let both = refusal(&target(ReadWrite, &[s, p])).await;
    assert!(both.contains("it is a standby; ") && both.ends_with("its sessions are read only"), "{both}");
    assert_eq!(reached(&target(ReadOnly, &[p, s])).await.unwrap(), p);
    assert_eq!(reached(&target(Primary, &[s, p])).await.unwrap(), p);
    primary.psql("alter system reset default_transaction_read_only");
    primary.psql("select pg_reload_conf()");
    // A session that asks for that itself says nothing about the server.
    let own = ("default_transaction_read_only".to_owned(), "on".to_owned());
    let asked = StartupParameters { settings: vec![own], ..start("postgres") };
    assert_eq!(target(ReadWrite, &[s, p]).connect(&asked).await.unwrap().upstream.address, p);

    primary.stop();
    let gone = refusal(&target(ReadWrite, &[p, s])).await;
    assert!(gone.contains(&format!("server {p}: cannot connect")), "{gone}");
    assert!(gone.contains(&format!("(port {}): target_session_attrs is `read-write`", s.port())), "{gone}");
    assert_eq!(reached(&target(Any, &[p, s])).await.unwrap(), s);
    standby.promote();
    assert_eq!(reached(&target(ReadWrite, &[p, s])).await.unwrap(), s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_silent_is_passed_over_and_one_that_refuses_is_not() {
    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(&["localhost"]));
    // Nobody accepts, and the queue is full: further connects get no answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&silent, 0).unwrap();
    let address = silent.local_addr().unwrap();
    let _full: Vec<_> =
        (0..4).map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))).collect();
    let begun = std::time::Instant::now();
    assert_eq!(reached(&target(Any, &[address, server.address])).await.unwrap(), server.address);
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(10));

    let mut wrong = target(Any, &[server.address, address]);
    let host = Arc::get_mut(&mut wrong.servers[0]).unwrap();
    host.settings.credential = credential("wrong");
    let refused = refusal(&wrong).await;
    assert!(refused.contains("28P01") && !refused.contains(';'), "the others would say the same: {refused}");
}
