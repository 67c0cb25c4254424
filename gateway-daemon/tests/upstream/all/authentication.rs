//! Every way to prove who one is, against a real server.

use std::{fs, sync::Arc};

use gateway_daemon::{
    protocol::postgres::upstream::{AuthKind, ChannelBinding, Failure, TlsMode, connect, simple_query_rows},
    secret::{CredentialSource, SecretRef},
};

use super::{
    certificates::Authority,
    queries::LIMITS,
    server::{Server, credential, roots, secret_file, settings, start},
};

/// User, TLS, channel binding and password; the way in, or part of the refusal.
type Row = (&'static str, TlsMode, ChannelBinding, Option<&'static str>, Result<AuthKind, &'static str>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_lets_in_or_is_refused_for_its_own_reason() {
    use TlsMode::{Disable, Require, VerifyFull};
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    let require = ChannelBinding::Require;
    let prefer = ChannelBinding::Prefer;
    let rows: [Row; 24] = [
        ("scram", Disable, prefer, Some("hunter2"), Ok(AuthKind::Scram)),
        ("scram", VerifyFull, prefer, Some("hunter2"), Ok(AuthKind::ScramPlus)),
        ("scram", VerifyFull, require, Some("hunter2"), Ok(AuthKind::ScramPlus)),
        ("scram", Require, require, Some("hunter2"), Ok(AuthKind::ScramPlus)),
        ("scram", Disable, require, Some("hunter2"), Err("the connection is not under TLS")),
        ("scram", VerifyFull, prefer, Some("wrong"), Err("FATAL 28P01: password authentication failed")),
        ("scram", VerifyFull, prefer, None, Err("has none")),
        ("tlsonly", VerifyFull, prefer, Some("hunter2"), Ok(AuthKind::ScramPlus)),
        ("tlsonly", Disable, prefer, Some("hunter2"), Err("FATAL 28000: pg_hba.conf rejects connection")),
        ("unicode", Disable, prefer, Some("pä§ wörd Ⅸ"), Ok(AuthKind::Scram)),
        ("unicode", Disable, prefer, Some("pä§ wörd IX"), Ok(AuthKind::Scram)), // the same after SASLprep
        ("md5er", Disable, prefer, Some("hunter2"), Ok(AuthKind::Md5)),
        ("md5er", VerifyFull, prefer, Some("hunter2"), Ok(AuthKind::Md5)),
        ("md5er", VerifyFull, require, Some("hunter2"), Err("channel binding is required")),
        ("md5er", Disable, prefer, Some("wrong"), Err("FATAL 28P01")),
        ("plain", VerifyFull, prefer, Some("hunter2"), Ok(AuthKind::Cleartext)),
        ("plain", Disable, prefer, Some("hunter2"), Err("asks for the password in the clear")),
        ("plain", Require, prefer, Some("hunter2"), Err("asks for the password in the clear")),
        ("plain", VerifyFull, prefer, Some("wrong"), Err("FATAL 28P01")),
        ("trusty", Disable, prefer, None, Ok(AuthKind::Trust)),
        ("trusty", VerifyFull, require, Some("hunter2"), Err("let Weir in without it")),
        ("gssy", Disable, prefer, Some("hunter2"), Err("GSSAPI authentication, which is not supported")),
        (
            "certy",
            VerifyFull,
            prefer,
            Some("hunter2"),
            Err("FATAL 28000: connection requires a valid client certificate"),
        ),
        ("nobody", VerifyFull, prefer, Some("hunter2"), Err("FATAL 28000: no pg_hba.conf entry")),
    ];
    for (user, mode, channel_binding, password, expected) in rows {
        let case = format!("{user} {mode} {channel_binding:?} {password:?}");
        let mut settings = settings(mode, &trusted, "localhost", user);
        settings.channel_binding = channel_binding;
        settings.credential = password.and_then(credential);
        match (connect(&settings, server.address, &start("postgres")).await, expected) {
            (Ok(upstream), Ok(kind)) => assert_eq!(upstream.authenticated, kind, "{case}"),
            (Err(error), Err(fault)) => {
                let text = format!("{} {error:?}", error.report());
                assert!(text.contains(fault), "{case}: {text}");
                assert!(!text.contains("hunter2") && !text.contains("wrong"), "{case}: {text}");
            }
            (outcome, expected) => {
                panic!("{case}: {outcome:?} instead of {expected:?}\n{}", server.log())
            }
        }
    }
}

#[tokio::test]
async fn a_session_starts_as_it_was_asked_to() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    let mut wanted = start("template1");
    wanted.settings = vec![("search_path".into(), "a, b".into()), ("TimeZone".into(), "Asia/Tokyo".into())];
    // A role whose defaults say otherwise, and one that would change how statements are read.
    let settings = settings(TlsMode::VerifyFull, &trusted, "localhost", "encoded");
    let mut upstream = connect(&settings, server.address, &wanted).await.unwrap();
    assert_eq!(upstream.greeting.parameters["client_encoding"], "UTF8");
    assert_eq!(upstream.greeting.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(upstream.greeting.parameters["application_name"], "weir:claude:1 psql");
    assert!(upstream.greeting.key.is_some());
    assert_eq!(&*upstream.user, "encoded");
    let rows = simple_query_rows(
        &mut upstream,
        "select current_user, current_database(), current_setting('search_path'), s.ssl from pg_stat_ssl s where pid = pg_backend_pid()",
        &LIMITS,
    )
    .await
    .unwrap();
    let expected = ["encoded", "template1", "a, b", "t"].map(|value| Some(value.to_owned()));
    assert_eq!(rows, [expected.to_vec()]);

    let error = connect(&settings, server.address, &start("no_such")).await.unwrap_err();
    assert!(matches!(&error.failure, Failure::Server { sqlstate, .. } if sqlstate == "3D000"), "{error}");
}

#[tokio::test]
async fn the_credential_names_the_user_and_a_changed_one_is_found() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    let mut settings = settings(TlsMode::VerifyFull, &trusted, "localhost", "nobody");
    let command = ["/bin/echo", r#"{"user":"scram","password":"hunter2"}"#].map(str::to_owned).to_vec();
    settings.credential = Some(Arc::new(CredentialSource::new(SecretRef::Command(command))));
    let upstream = connect(&settings, server.address, &start("postgres")).await.unwrap();
    assert_eq!(&*upstream.user, "scram");

    let file = secret_file("yesterday's");
    settings.user = "scram".into();
    settings.credential = Some(Arc::new(CredentialSource::new(SecretRef::File(file.path().to_owned()))));
    assert!(connect(&settings, server.address, &start("postgres")).await.is_err());
    fs::write(file.path(), "hunter2").unwrap();
    connect(&settings, server.address, &start("postgres")).await.expect("the new password is read at once");

    settings.credential = Some(Arc::new(CredentialSource::new(SecretRef::File("/no/such/file".into()))));
    let error = connect(&settings, server.address, &start("postgres")).await.unwrap_err();
    let report = error.report();
    let cause = "the credential cannot be had: secret file `/no/such/file` cannot be read: No such file";
    assert!(report.contains(cause), "{report}");
}
