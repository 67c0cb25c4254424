use base64::{Engine, prelude::BASE64_STANDARD};
use proptest::prelude::*;

use super::*;

fn means(channel_binding: ChannelBinding, transport: Transport) -> Means {
    Means { user: "weir".into(), password: Some("hunter2".into()), transport, channel_binding }
}

fn tls(mode: TlsMode) -> Transport {
    Transport::Tls { mode, end_point: Some(vec![7; 32]) }
}

fn parameters(settings: &[(&str, &str)]) -> StartupParameters {
    StartupParameters {
        database: "orders".into(),
        application_name: "weir:claude:1".into(),
        settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    }
}

fn begun(means: Means) -> Startup {
    Startup::new(means, &parameters(&[]), ProtocolVersion::V3_2).unwrap().0
}

fn server(tag: u8, body: &[u8]) -> Vec<u8> {
    message(tag, body).unwrap().to_vec()
}

fn auth(code: i32, rest: &[u8]) -> Vec<u8> {
    server(b'R', &[&code.to_be_bytes(), rest].concat())
}

fn say(startup: &mut Startup, bytes: &[u8]) -> Result<Progress, Failure> {
    startup.receive(&mut BytesMut::from(bytes))
}

fn sent(progress: Progress) -> Vec<u8> {
    let Progress::Send(bytes) = progress else { panic!("{progress:?}") };
    bytes.to_vec()
}

fn greeting_bytes() -> Vec<u8> {
    [
        auth(0, b""),
        server(b'S', b"client_encoding\0UTF8\0"),
        server(b'S', b"standard_conforming_strings\0on\0"),
        server(b'S', b"TimeZone\0UTC\0"),
        server(b'N', b"SNOTICE\0C00000\0Mhello\0\0"),
        server(b'S', b"TimeZone\0CET\0"),
        server(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]),
        server(b'Z', b"I"),
    ]
    .concat()
}

#[test]
fn the_startup_message_names_what_is_weirs_own_before_the_settings() {
    let given = parameters(&[("search_path", "a,b")]);
    let means = means(ChannelBinding::Prefer, Transport::Plain);
    let (_, packet) = Startup::new(means, &given, ProtocolVersion::V3_2).unwrap();
    let expected = b"\0\x03\0\x02user\0weir\0database\0orders\0application_name\0weir:claude:1\0client_encoding\0UTF8\0standard_conforming_strings\0on\0search_path\0a,b\0\0";
    assert_eq!(packet[..4], u32::try_from(packet.len()).unwrap().to_be_bytes());
    assert_eq!(packet[4..], expected[..]);
}

#[test]
fn settings_that_are_weirs_own_or_carry_others_are_refused() {
    for name in [
        "user",
        "Replication",
        "options",
        "client_encoding",
        "Standard_Conforming_Strings",
        "DATABASE",
        "_pq_.x",
        "application_name",
        "",
        "a\0b",
    ] {
        let refused = Startup::new(
            means(ChannelBinding::Prefer, Transport::Plain),
            &parameters(&[(name, "x")]),
            ProtocolVersion::V3_0,
        )
        .unwrap_err();
        assert!(matches!(refused, Failure::Parameter { .. }), "{name}: {refused}");
    }
    let long = "x".repeat(MAX_STARTUP_PACKET);
    for value in ["a\0b", long.as_str()] {
        let given = parameters(&[("search_path", value)]);
        assert!(Startup::new(means(ChannelBinding::Prefer, Transport::Plain), &given, ProtocolVersion::V3_0).is_err());
    }
}

#[test]
fn a_greeting_is_kept_as_it_came_and_by_name() {
    let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
    let mut buf = BytesMut::from(&[greeting_bytes(), b"more".to_vec()].concat()[..]);
    let Progress::Ready(kind, greeting) = startup.receive(&mut buf).unwrap() else { panic!() };
    assert_eq!(kind, AuthKind::Trust);
    assert_eq!(greeting.parameters["TimeZone"], "CET");
    assert_eq!(greeting.parameter_frames.iter().filter(|byte| **byte == b'S').count(), 4);
    assert!(greeting.notice_frames.starts_with(b"N"));
    assert_eq!(greeting.key, Some(BackendKey { process: 9, secret: [1, 2, 3, 4].as_slice().into() }));
    assert_eq!(&buf[..], b"more");
    assert!(!format!("{greeting:?}").contains("16909060"), "the cancel secret is shown");
}

proptest! {
    #[test]
    fn a_greeting_in_pieces_is_the_greeting(cuts in prop::collection::vec(1usize..20, 0..40)) {
        let whole = greeting_bytes();
        let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
        let (mut buf, mut rest, mut cuts) = (BytesMut::new(), &whole[..], cuts.into_iter());
        loop {
            let (piece, further) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
            buf.extend_from_slice(piece);
            rest = further;
            match startup.receive(&mut buf).unwrap() {
                Progress::More => prop_assert!(!rest.is_empty()),
                Progress::Send(_) => prop_assert!(false),
                Progress::Ready(_, greeting) => {
                    prop_assert!(rest.is_empty());
                    prop_assert_eq!(greeting.parameters.len(), 3);
                    break;
                }
            }
        }
    }

    #[test]
    fn no_bytes_of_a_server_panic_or_authenticate(bytes in prop::collection::vec(any::<u8>(), 0..200), code in 1i32..14) {
        for prefix in [Vec::new(), auth(code, b""), auth(10, b"SCRAM-SHA-256\0\0")] {
            let mut startup = begun(means(ChannelBinding::Require, tls(TlsMode::VerifyFull)));
            let mut buf = BytesMut::from(&[prefix, bytes.clone()].concat()[..]);
            while let Ok(progress) = startup.receive(&mut buf) {
                match progress {
                    Progress::More => break,
                    Progress::Send(_) => {}
                    Progress::Ready(..) => prop_assert!(false),
                }
            }
        }
    }
}

#[test]
fn what_has_no_place_is_refused_and_the_refusal_stays() {
    let greeted = auth(0, b"");
    let utf8 = [&greeted[..], &server(b'S', b"client_encoding\0UTF8\0")].concat();
    let off = server(b'S', b"standard_conforming_strings\0off\0");
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (server(b'Z', b"I"), "message `Z` came while authenticating"),
        (server(b'S', b"a\0b\0"), "message `S` came while authenticating"),
        (server(b'N', b"\0"), "message `N` came while authenticating"),
        (auth(11, b"x"), "unknown kind 11"),
        (auth(99, b""), "unknown kind 99"),
        (auth(7, b""), "GSSAPI"),
        (auth(9, b""), "SSPI"),
        (auth(2, b""), "Kerberos"),
        (auth(0, b"x"), "`R` is malformed"),
        (auth(5, b"abc"), "`R` is malformed"),
        (auth(10, b"OAUTHBEARER\0\0"), "no SASL mechanism"),
        (auth(10, b"SCRAM-SHA-256\0"), "`R` is malformed"),
        (b"HTTP/1.1 400 Bad Request".to_vec(), "message `H` claims"),
        (b"R\0\0\0\x03".to_vec(), "claims 3 bytes"),
        (b"R\xff\xff\xff\xff".to_vec(), "claims 4294967295 bytes"),
        ([&greeted[..], &server(b'Z', b"T")].concat(), "`Z` is malformed"),
        ([&greeted[..], &server(b'Z', b"I")].concat(), "client_encoding is ``"),
        ([&greeted[..], &server(b'S', b"client_encoding\0SJIS\0"), &server(b'Z', b"I")].concat(), "`SJIS`"),
        ([&utf8[..], &server(b'Z', b"I")].concat(), "standard_conforming_strings is ``"),
        ([&utf8[..], &off, &server(b'Z', b"I")].concat(), "standard_conforming_strings is `off`"),
        ([&greeted[..], &greeted[..]].concat(), "message `R` came"),
        ([&greeted[..], &server(b'T', b"\0\0")].concat(), "message `T` came before ReadyForQuery"),
        ([&greeted[..], &server(b'K', b"abc")].concat(), "`K` is malformed"),
        ([&greeted[..], &server(b'v', &[0; 8])].concat(), "message `v` came"),
        (server(b'v', &[0, 0, 0, 0, 0, 0, 0, 1, b'x', 0]), "`v` is malformed"),
        (server(b'v', &[0, 2, 0, 0, 0, 0, 0, 0]), "was not asked for"),
        (server(b'v', &[0, 3, 0, 1, 0, 0, 0, 0]), "was not asked for"),
        (server(b'v', &[0, 3, 0, 3, 0, 0, 0, 0]), "was not asked for"),
        (server(b'v', &[0, 3, 0, 0, 0, 0, 0, 1]), "was not asked for"),
        (
            [server(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]), server(b'v', &[0, 3, 0, 2, 0, 0, 0, 0])].concat(),
            "was not asked for",
        ),
        ([&greeted[..], &server(b'K', &[0; 4 + 257])].concat(), "`K` is malformed"),
    ];
    for (bytes, fault) in rows {
        let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
        let error = say(&mut startup, &bytes).unwrap_err().to_string();
        assert!(error.contains(fault), "{bytes:?}: {error}");
        assert!(say(&mut startup, &greeting_bytes()).is_err(), "{bytes:?}: forgotten");
    }
}

#[test]
fn a_server_negotiates_the_version_and_with_it_the_length_of_its_key() {
    let greeting = |secret: usize| {
        let key = server(b'K', &vec![7; 4 + secret]);
        let settings = [server(b'S', b"client_encoding\0UTF8\0"), server(b'S', b"standard_conforming_strings\0on\0")];
        [auth(0, b""), settings.concat(), key, server(b'Z', b"I")].concat()
    };
    for (reply, longest) in
        [(None, 256), (Some(2_i32), 256), (Some(0x0003_0002), 256), (Some(0), 4), (Some(0x0003_0000), 4)]
    {
        for (secret, fits) in [(3, false), (4, true), (5, longest > 4), (256, longest > 4), (257, false)] {
            let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
            if let Some(version) = reply {
                let reply = server(b'v', &[version.to_be_bytes(), [0; 4]].concat());
                assert!(matches!(say(&mut startup, &reply), Ok(Progress::More)));
            }
            match say(&mut startup, &greeting(secret)) {
                Ok(Progress::Ready(_, greeting)) => {
                    assert_eq!((greeting.key.unwrap().secret.len(), fits), (secret, true))
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert!(!fits, "{reply:?} {secret}: {error}"),
            }
        }
    }
}

#[test]
fn messages_without_end_are_cut_off() {
    let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
    let mut bytes = auth(0, b"");
    bytes.extend(server(b'N', b"\0").repeat(MAX_MESSAGES));
    assert!(matches!(say(&mut startup, &bytes), Err(Failure::Messages { .. })));
}

#[test]
fn the_password_in_the_clear_goes_to_verified_servers_only() {
    for (transport, allowed) in [
        (Transport::Plain, false),
        (tls(TlsMode::Require), false),
        (tls(TlsMode::VerifyCa), true),
        (tls(TlsMode::VerifyFull), true),
    ] {
        let mut startup = begun(means(ChannelBinding::Prefer, transport.clone()));
        match say(&mut startup, &auth(3, b"")) {
            Ok(progress) => {
                assert_eq!((allowed, sent(progress)), (true, b"p\0\0\0\x0chunter2\0".to_vec()))
            }
            Err(error) => assert!(!allowed && matches!(error, Failure::ClearPassword { .. }), "{transport:?} {error}"),
        }
    }
}

#[test]
fn md5_answers_as_the_manual_says() {
    let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
    let answer = sent(say(&mut startup, &auth(5, &[1, 2, 3, 4])).unwrap());
    // (printf %s "$(printf hunter2weir | md5sum | cut -c-32)"; printf '\1\2\3\4') | md5sum
    assert_eq!(answer[5..], b"md5635649e37bc7e2495ec377713ab43667\0"[..]);
    assert!(matches!(say(&mut startup, &greeting_bytes()), Ok(Progress::Ready(AuthKind::Md5, _))));
}

#[test]
fn required_channel_binding_is_never_done_without() {
    let without = Transport::Tls { mode: TlsMode::VerifyFull, end_point: None };
    let rows = [
        (Transport::Plain, auth(10, b"SCRAM-SHA-256\0\0"), "not under TLS"),
        (Transport::Plain, auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), "not under TLS"),
        (without, auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), "RFC 5929"),
        (tls(TlsMode::VerifyFull), auth(10, b"SCRAM-SHA-256\0\0"), "the server does not offer it"),
        (tls(TlsMode::VerifyFull), auth(3, b""), "does not offer it"),
        (tls(TlsMode::VerifyFull), auth(5, &[0; 4]), "does not offer it"),
        (tls(TlsMode::VerifyFull), auth(0, b""), "let Weir in without it"),
    ];
    for (transport, request, why) in rows {
        let error = say(&mut begun(means(ChannelBinding::Require, transport)), &request).unwrap_err().to_string();
        assert!(error.contains("channel binding is required") && error.contains(why), "{error}");
    }
}

#[test]
fn scram_says_whether_channel_binding_could_be_had() {
    let both: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    let plain: &[u8] = b"SCRAM-SHA-256\0\0";
    let unbound = Transport::Tls { mode: TlsMode::Require, end_point: None };
    for (transport, offered, mechanism, header) in [
        (tls(TlsMode::Require), both, "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"),
        (tls(TlsMode::Require), plain, "SCRAM-SHA-256", "y,,"),
        (unbound, both, "SCRAM-SHA-256", "n,,"),
        (Transport::Plain, plain, "SCRAM-SHA-256", "n,,"),
    ] {
        let answer = sent(say(&mut begun(means(ChannelBinding::Prefer, transport)), &auth(10, offered)).unwrap());
        let expected = format!("{mechanism}\0");
        assert!(answer[5..].starts_with(expected.as_bytes()));
        assert!(answer[5 + expected.len() + 4..].starts_with(header.as_bytes()), "{header}");
    }
}

/// A server in the middle of SCRAM that does not know the password.
fn first_done() -> (Startup, Vec<u8>) {
    let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
    let initial = sent(say(&mut startup, &auth(10, b"SCRAM-SHA-256\0\0")).unwrap());
    let message = std::str::from_utf8(&initial[5 + "SCRAM-SHA-256\0".len() + 4..]).unwrap();
    let nonce = message.strip_prefix("n,,n=,r=").unwrap().as_bytes().to_vec();
    (startup, nonce)
}

fn server_first(nonce: &[u8], iterations: u32) -> Vec<u8> {
    auth(11, &[b"r=", nonce, format!("server,s=c2FsdA==,i={iterations}").as_bytes()].concat())
}

#[test]
fn a_server_that_does_not_know_the_password_is_not_believed() {
    let wrong = auth(12, format!("v={}", BASE64_STANDARD.encode([0; 32])).as_bytes());
    for (ending, fault) in [
        (wrong, "SCRAM authentication failed"),
        (auth(12, b"e=invalid-proof"), "SCRAM authentication failed"),
        (greeting_bytes(), "message `R` came"),
        (auth(11, b"r=x"), "message `R` came"),
    ] {
        let (mut startup, nonce) = first_done();
        sent(say(&mut startup, &server_first(&nonce, 4096)).unwrap());
        let error = say(&mut startup, &ending).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
    let (mut startup, _) = first_done();
    assert!(say(&mut startup, &greeting_bytes()).is_err(), "AuthenticationOk in the place of a challenge");
    let (mut startup, _) = first_done();
    assert!(matches!(say(&mut startup, &server_first(b"other", 4096)), Err(Failure::Scram(_))));
}

#[test]
fn a_server_cannot_make_weir_hash_for_ever() {
    let (mut startup, nonce) = first_done();
    assert!(matches!(say(&mut startup, &server_first(&nonce, u32::MAX)), Err(Failure::Scram(_))));
}

#[test]
fn a_refusal_keeps_the_servers_words() {
    let mut startup = begun(means(ChannelBinding::Prefer, Transport::Plain));
    let refusal = server(b'E', b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0Fauth.c\0\0");
    let error = say(&mut startup, &refusal).unwrap_err();
    assert_eq!(error.to_string(), "the server says FATAL 28P01: password authentication failed");
    assert_eq!(error.help(), Some("check `user` and `password` of the connection"));
}
