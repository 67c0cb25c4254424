//! An issuer's keys: asked for when they must be, kept while they may be, and never from elsewhere.

use std::{sync::Arc, time::Duration};

use gateway_daemon::identity::{Issuer, IssuerSettings, TokenError, clock::Clock as _, token::TokenSettings};
use secrecy::SecretString;
use serde_json::json;

use crate::{
    keys::{ED25519, OTHER_RSA, P256, RSA},
    provider::{Answer, DISCOVERY, KEYS, Provider, TestClock, certificate},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// An issuer and the clock that it is asked by.
struct Bench {
    provider: Provider,
    issuer: Arc<Issuer>,
    clock: TestClock,
}

impl Bench {
    async fn new() -> Self {
        let provider = Provider::with(&[&P256]).await;
        let issuer = Arc::new(Issuer::new(provider.settings()).expect("settings"));
        Self { provider, issuer, clock: TestClock::new() }
    }

    fn token(&self) -> SecretString {
        P256.token("ES256", &self.provider.claims(self.clock.now())).into()
    }

    async fn verify(&self, token: &SecretString) -> Result<(), String> {
        self.issuer.verify(token, self.clock.now()).await.map(drop).map_err(|error| error.to_string())
    }
}

fn settings_fault(settings: IssuerSettings) -> String {
    Issuer::new(settings).err().expect("refused").to_string()
}

#[tokio::test]
async fn keys_are_asked_for_once_and_kept() {
    let bench = Bench::new().await;
    for _ in 0..20 {
        bench.verify(&bench.token()).await.expect("good");
    }
    assert_eq!((bench.provider.asked(DISCOVERY), bench.provider.asked(KEYS)), (1, 1));
    // An hour without a word in Cache-Control.
    bench.clock.advance(HOUR - MINUTE);
    bench.verify(&bench.token()).await.expect("good");
    assert_eq!(bench.provider.asked(KEYS), 1);
    bench.clock.advance(MINUTE);
    bench.verify(&bench.token()).await.expect("good");
    assert_eq!(bench.provider.asked(KEYS), 2);
}

#[tokio::test]
async fn cache_control_shortens_to_five_minutes_and_lengthens_to_no_more_than_an_hour() {
    for (header, kept) in [
        ("Cache-Control: max-age=0\r\n", 5 * MINUTE),
        ("Cache-Control: no-store\r\n", 5 * MINUTE),
        ("Cache-Control: public, max-age=600\r\n", 10 * MINUTE),
        ("Cache-Control: max-age=31536000\r\n", HOUR),
    ] {
        let bench = Bench::new().await;
        let keys = Answer { header: header.into(), ..Answer::json(&json!({"keys": [P256.jwk()]})) };
        bench.provider.answer(KEYS, keys);
        bench.verify(&bench.token()).await.expect("good");
        bench.clock.advance(kept - Duration::from_secs(1));
        bench.verify(&bench.token()).await.expect("good");
        assert_eq!(bench.provider.asked(KEYS), 1, "{header}");
        bench.clock.advance(Duration::from_secs(1));
        bench.verify(&bench.token()).await.expect("good");
        assert_eq!(bench.provider.asked(KEYS), 2, "{header}");
    }
}

#[tokio::test]
async fn a_new_key_is_found_and_unknown_ones_cannot_make_weir_ask_more_than_every_30_seconds() {
    let bench = Bench::new().await;
    bench.verify(&bench.token()).await.expect("good");
    let with_new_key = || SecretString::from(ED25519.token("EdDSA", &bench.provider.claims(bench.clock.now())));
    bench.clock.advance(MINUTE);
    let unknown = "the issuer has no key with the token's `kid`";
    assert!(bench.verify(&with_new_key()).await.unwrap_err().contains("no key with"), "{unknown}");
    assert_eq!(bench.provider.asked(KEYS), 2);
    bench.provider.serve_keys(&[&P256, &ED25519]);
    for _ in 0..50 {
        let error = bench.verify(&with_new_key()).await.unwrap_err();
        assert_eq!(
            error,
            "the issuer's keys cannot be had: the token's `kid` is unknown and the keys were asked for a moment ago; \
             asked again in 31 s"
        );
        bench.verify(&bench.token()).await.expect("known keys still work");
    }
    assert_eq!(bench.provider.asked(KEYS), 2);
    bench.clock.advance(Duration::from_secs(30));
    bench.verify(&with_new_key()).await.expect("the new key");
    assert_eq!(bench.provider.asked(KEYS), 3);
}

#[tokio::test]
async fn a_key_that_was_withdrawn_ends_with_the_cache() {
    let bench = Bench::new().await;
    bench.verify(&bench.token()).await.expect("good");
    bench.provider.serve_keys(&[&ED25519]);
    bench.clock.advance(HOUR);
    assert_eq!(bench.verify(&bench.token()).await.unwrap_err(), "the issuer has no key with the token's `kid`");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_ask_once() {
    let bench = Bench::new().await;
    let slow = Answer { delay: Duration::from_millis(100), ..Answer::json(&json!({"keys": [P256.jwk()]})) };
    bench.provider.answer(KEYS, slow);
    let (token, now) = (bench.token(), bench.clock.now());
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (issuer, token) = (Arc::clone(&bench.issuer), token.clone());
            tokio::spawn(async move { issuer.verify(&token, now).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("good");
    }
    assert_eq!((bench.provider.asked(KEYS), bench.provider.most_at_once()), (1, 1));
}

#[tokio::test]
async fn an_issuer_that_is_down_is_bridged_for_a_day_and_then_refuses() {
    let bench = Bench::new().await;
    bench.verify(&bench.token()).await.expect("good");
    bench.provider.fail("503 Service Unavailable");
    for _ in 0..23 {
        bench.clock.advance(HOUR);
        bench.verify(&bench.token()).await.expect("keys at hand");
    }
    assert_eq!(bench.provider.asked(DISCOVERY), 24, "asked again each time");
    let asked = bench.provider.asked(DISCOVERY);
    bench.verify(&bench.token()).await.expect("keys at hand");
    assert_eq!(bench.provider.asked(DISCOVERY), asked, "but not at once again");
    bench.clock.advance(HOUR);
    let url = &bench.provider.url;
    assert_eq!(
        bench.verify(&bench.token()).await.unwrap_err(),
        format!(
            "the issuer's keys cannot be had: those at hand are older than 86400 s (`stale_window`), and newer ones: \
             `{url}{DISCOVERY}`: `127.0.0.1` answers with status 503"
        )
    );
    let back = Answer::json(&json!({"issuer": url, "jwks_uri": format!("{url}{KEYS}")}));
    bench.provider.answer(DISCOVERY, back);
    bench.provider.serve_keys(&[&P256]);
    assert!(bench.verify(&bench.token()).await.unwrap_err().contains("tried a moment ago"));
    bench.clock.advance(MINUTE);
    bench.verify(&bench.token()).await.expect("it is back");
}

#[tokio::test]
async fn what_an_issuer_may_not_answer_refuses_every_token() {
    let document = |url: &str, changes: &[(&str, serde_json::Value)]| {
        let mut document = json!({"issuer": url, "jwks_uri": format!("{url}{KEYS}")});
        for (name, value) in changes {
            document[*name] = value.clone();
        }
        Answer::json(&document)
    };
    let big = Answer { body: vec![b' '; 1024 * 1024 + 1], ..Answer::json(&json!({})) };
    let twice = |url: &str| Answer {
        body: format!(r#"{{"issuer":"{url}","jwks_uri":"{url}/keys","jwks_uri":"http://127.0.0.1:1/"}}"#).into(),
        ..Answer::json(&json!({}))
    };
    let redirect = Answer {
        status: "302 Found",
        header: "Location: /keys\r\n".into(),
        ..Answer::json(&json!({"keys": [P256.jwk()]}))
    };
    let slow = Answer { delay: Duration::from_secs(60), ..Answer::json(&json!({})) };
    let many = Answer::json(&json!({"keys": vec![P256.jwk(); 101]}));
    type Change = Box<dyn Fn(&str) -> Answer>;
    let table: Vec<(&str, &str, Change, &str)> = vec![
        (
            "another issuer",
            DISCOVERY,
            Box::new(move |url| document(url, &[("issuer", json!("https://evil.example"))])),
            "is the discovery document of another issuer",
        ),
        (
            "a slash more",
            DISCOVERY,
            Box::new(move |url| document(url, &[("issuer", json!(format!("{url}/")))])),
            "is the discovery document of another issuer",
        ),
        (
            "no keys",
            DISCOVERY,
            Box::new(move |url| document(url, &[("jwks_uri", json!(null))])),
            "it has no `jwks_uri`",
        ),
        (
            "keys elsewhere, unprotected",
            DISCOVERY,
            Box::new(move |url| document(url, &[("jwks_uri", json!("http://10.0.0.1/keys"))])),
            "plain http is for loopback addresses only",
        ),
        (
            "keys in a file",
            DISCOVERY,
            Box::new(move |url| document(url, &[("jwks_uri", json!("file:///etc/keys"))])),
            "`jwks_uri` of",
        ),
        ("a key twice", DISCOVERY, Box::new(twice), "names a key twice"),
        (
            "a page",
            DISCOVERY,
            Box::new(|_| Answer { body: b"<html>".to_vec(), ..Answer::json(&json!({})) }),
            "it is not a JSON object",
        ),
        ("a redirect", KEYS, Box::new(move |_| redirect.clone()), "answers with a redirect, which is not followed"),
        (
            "a missing page",
            KEYS,
            Box::new(|_| Answer { status: "404 Not Found", ..Answer::json(&json!({"keys": []})) }),
            "answers with status 404",
        ),
        ("a flood", KEYS, Box::new(move |_| big.clone()), "is longer than 1048576 bytes or ends early"),
        ("silence", KEYS, Box::new(move |_| slow.clone()), "no answer within 300 ms"),
        ("too many keys", KEYS, Box::new(move |_| many.clone()), "the key set has more than 100 keys"),
        (
            "no key set",
            KEYS,
            Box::new(|_| Answer::json(&json!({"error": "x"}))),
            "the key set has no array `keys` of objects",
        ),
    ];
    for (what, path, answer, message) in table {
        let provider = Provider::with(&[&P256]).await;
        provider.answer(path, answer(&provider.url));
        let settings = IssuerSettings { timeout: Duration::from_millis(300), ..provider.settings() };
        let issuer = Issuer::new(settings).expect("settings");
        let now = TestClock::new().now();
        let token = P256.token("ES256", &provider.claims(now)).into();
        let error = issuer.verify(&token, now).await.expect_err(what);
        assert!(matches!(error, TokenError::Keys(_)) && error.to_string().contains(message), "{what}: {error}");
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_exist_says_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let issuer = Issuer::new(IssuerSettings::new(TokenSettings::new("corp", &url, "weir"))).expect("settings");
    let token = RSA.token("RS256", &json!({})).into();
    let error = issuer.verify(&token, TestClock::new().now()).await.unwrap_err().to_string();
    assert!(error.contains("`127.0.0.1` cannot be connected to: Connection refused"), "{error}");
}

#[tokio::test]
async fn https_is_trusted_by_the_ca_file_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let ca_file = folder.path().join("ca.pem");
    let (leaf, key) = certificate(&ca_file);
    let other_ca = folder.path().join("other.pem");
    certificate(&other_ca);
    let provider = Provider::with_tls(&[&P256], leaf, key).await;
    let now = TestClock::new().now();
    let token: SecretString = P256.token("ES256", &provider.claims(now)).into();
    let with = |ca_file: Option<&std::path::Path>| {
        Issuer::new(IssuerSettings { ca_file: ca_file.map(Into::into), ..provider.settings() }).expect("settings")
    };
    with(Some(&ca_file)).verify(&token, now).await.expect("good");
    for wrong in [Some(&*other_ca), None] {
        let error = with(wrong).verify(&token, now).await.unwrap_err().to_string();
        assert!(error.contains("TLS with `localhost` failed") && error.contains("invalid peer certificate"), "{error}");
    }
    // The certificate is for `localhost`, not for the address.
    let by_address = provider.url.replace("localhost", "127.0.0.1");
    let settings = IssuerSettings::new(TokenSettings::new("corp", &by_address, "weir"));
    let issuer = Issuer::new(IssuerSettings { ca_file: Some(ca_file.clone()), ..settings }).expect("settings");
    let error = issuer.verify(&RSA.token("RS256", &json!({})).into(), now).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    // Keys of an https issuer come by https.
    let document = json!({"issuer": provider.url, "jwks_uri": format!("http://127.0.0.1:1{KEYS}")});
    provider.answer(DISCOVERY, Answer::json(&document));
    let error = with(Some(&ca_file)).verify(&token, now).await.unwrap_err().to_string();
    assert!(error.contains("it is plain http, while the issuer is https"), "{error}");
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused_even_with_its_own_good_keys() {
    let bench = Bench::new().await;
    let mut claims = bench.provider.claims(bench.clock.now());
    claims["iss"] = json!("http://127.0.0.1:1");
    let error = bench.verify(&P256.token("ES256", &claims).into()).await.unwrap_err();
    assert_eq!(error, format!("the token's `iss` is not exactly `{}`", bench.provider.url));
    let forged = OTHER_RSA.token_of(r#"{"alg":"ES256","kid":"p256"}"#, &claims.to_string());
    assert_eq!(bench.verify(&forged.into()).await.unwrap_err(), "the token's signature has 256 bytes instead of 64");
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let with_url = |url: &str| IssuerSettings::new(TokenSettings::new("corp", url, "weir"));
    let plain = "plain http is for loopback addresses only";
    for (url, fault) in [
        ("http://idp.example", plain),
        ("http://10.0.0.1", plain),
        ("https://idp.example/?tenant=1", "it has a query or a fragment"),
        ("https://idp.example/#x", "it has a query or a fragment"),
        ("https://me@idp.example", "it has a user name"),
        ("idp.example", "it is not a URL with scheme and host"),
    ] {
        assert_eq!(settings_fault(with_url(url)), format!("issuer `{url}`: {fault}"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let missing = IssuerSettings { ca_file: Some(folder.path().join("no.pem")), ..with_url("https://idp.example") };
    assert!(settings_fault(missing).contains("no.pem"));
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").expect("a file");
    let empty = IssuerSettings { ca_file: Some(empty), ..with_url("https://idp.example") };
    assert!(settings_fault(empty).contains("empty.pem`: it has no certificate"));
}

#[tokio::test]
async fn keys_come_from_a_file_and_the_issuer_is_never_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let put = |keys: &[&crate::keys::Key]| {
        let set = json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()});
        std::fs::write(&path, set.to_string()).expect("a file");
    };
    put(&[&P256]);
    let provider = Provider::with(&[&RSA]).await;
    let settings = || IssuerSettings { jwks_file: Some(path.clone()), ..provider.settings() };
    let bench =
        Bench { issuer: Arc::new(Issuer::new(settings()).expect("settings")), clock: TestClock::new(), provider };
    let (old, new) = (bench.token(), ED25519.token("EdDSA", &bench.provider.claims(bench.clock.now())).into());
    bench.verify(&old).await.expect("the file's key");
    // A key that is put there later is found, and one that was taken away is gone, within half a minute.
    put(&[&ED25519]);
    bench.clock.advance(Duration::from_secs(31));
    bench.verify(&new).await.expect("the new key");
    bench.clock.advance(Duration::from_secs(31));
    assert_eq!(bench.verify(&old).await.unwrap_err(), "the issuer has no key with the token's `kid`");
    assert_eq!(bench.provider.asked(DISCOVERY) + bench.provider.asked(KEYS), 0);
}

#[tokio::test]
async fn keys_are_withdrawn_when_their_file_can_no_longer_be_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let good = json!({"keys": [P256.jwk()]}).to_string();
    let twice = json!({"keys": [P256.jwk(), P256.jwk()]}).to_string();
    let mode = |at: &std::path::Path, mode| {
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    std::fs::write(&path, &good).expect("a file");
    let provider = Provider::with(&[&RSA]).await;
    let settings = IssuerSettings { jwks_file: Some(path.clone()), ..provider.settings() };
    let bench = Bench { issuer: Arc::new(Issuer::new(settings).expect("settings")), clock: TestClock::new(), provider };
    let spoils: [(&str, &dyn Fn()); 5] = [
        ("gone", &|| std::fs::remove_file(&path).expect("a file")),
        ("malformed", &|| std::fs::write(&path, &good[1..]).expect("a file")),
        ("empty", &|| std::fs::write(&path, "").expect("a file")),
        ("written by others", &|| mode(&path, 0o666)),
        ("in a folder that others write", &|| mode(folder.path(), 0o777)),
    ];
    for (what, spoil) in spoils {
        bench.clock.advance(Duration::from_secs(31));
        bench.verify(&bench.token()).await.unwrap_or_else(|error| panic!("before it is {what}: {error}"));
        spoil();
        bench.clock.advance(Duration::from_secs(31));
        let told = bench.verify(&bench.token()).await.expect_err(what);
        assert!(told.contains("`jwks_file`"), "{what}: {told}");
        let again = bench.verify(&bench.token()).await.expect_err(what);
        assert!(again.contains("tried a moment ago"), "{what}: {again}");
        // Mended, it serves again as soon as it is looked at, which is a second later.
        std::fs::write(&path, &good).expect("a file");
        mode(&path, 0o600);
        mode(folder.path(), 0o700);
        bench.clock.advance(Duration::from_millis(1100));
        bench.verify(&bench.token()).await.unwrap_or_else(|error| panic!("mended after it was {what}: {error}"));
    }
    // A key that is there twice is none, and the others serve.
    std::fs::write(&path, &twice).expect("a file");
    bench.clock.advance(Duration::from_secs(31));
    let told = bench.verify(&bench.token()).await.expect_err("one key twice");
    assert!(told.contains("more than one key with this `kid`"), "{told}");
}

#[test]
fn a_file_of_keys_that_others_could_write_or_that_is_none_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let fault = |what: &str, text: Option<&str>, mode: u32| {
        let path = folder.path().join(what);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
        let token = TokenSettings::new("corp", "https://idp.example", "weir");
        let fault = settings_fault(IssuerSettings { jwks_file: Some(path.clone()), ..IssuerSettings::new(token) });
        let prefix = format!("`jwks_file` {}: ", path.display());
        fault.strip_prefix(&prefix).unwrap_or_else(|| panic!("{fault}")).to_owned()
    };
    let set = json!({"keys": [P256.jwk()]}).to_string();
    let others = "others than its owner may write it, and so make identities: chmod go-w";
    assert_eq!(fault("group", Some(&set), 0o660), others);
    assert_eq!(fault("all", Some(&set), 0o606), others);
    assert_eq!(fault("no-set", Some("{}"), 0o644), "the key set has no array `keys` of objects");
    assert_eq!(fault("no-json", Some("keys"), 0o644), "the key set is not JSON");
    assert!(fault("missing", None, 0).starts_with("it cannot be read: "));
    assert_eq!(fault(".", None, 0), "it is no regular file");
}
