//! Other real providers: npm's `oidc-provider` and `oauth2-mock-server`, as `cargo xtask setup` installs them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gateway_daemon::identity::{
    Issuer, IssuerSettings,
    clock::{Clock as _, SystemClock},
    token::{Algorithm, TokenSettings},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A provider in a process of its own, ended with the test.
struct Provider {
    process: Child,
    port: u16,
}

impl Provider {
    fn start(script: &str) -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tools = here.join("../target/tools/node").canonicalize().expect("run `cargo xtask setup`");
        let mut node = Command::new("node");
        node.arg(here.join("tests/identity/providers").join(script)).arg(tools);
        let process = node.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("node starts");
        let mut provider = Self { process, port: 0 };
        // It says its port once it serves.
        let mut line = String::new();
        let output = provider.process.stdout.as_mut().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("a line");
        provider.port = line.trim().parse().expect("a port");
        provider
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The access token that this form gets.
    fn token(&self, form: &[(&str, &str)]) -> String {
        let form: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let form = form.join("&");
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the provider");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // RFC 7617: agents:agents-secret. HTTP 1.0: the answer ends with the connection.
        write!(
            stream,
            "POST /token HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nAuthorization: Basic YWdlbnRzOmFnZW50cy1zZWNyZXQ=\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            self.port,
            form.len()
        )
        .expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        body["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    fn issuer(&self, change: impl FnOnce(&mut TokenSettings)) -> Issuer {
        let mut token = TokenSettings::new("corp", &self.url(), "weir");
        token.groups = vec!["/groups".into()];
        change(&mut token);
        Issuer::new(IssuerSettings::new(token)).expect("settings")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As a form has it: letters and digits as they are, each other byte by its number.
fn escaped(value: &str) -> String {
    value
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

async fn refusal(issuer: &Issuer, token: &str) -> String {
    let error = issuer.verify(&token.into(), SystemClock.now()).await.expect_err("refused").to_string();
    assert!(!error.contains(token), "the refusal repeats the token");
    error
}

#[tokio::test]
async fn oidc_providers_tokens_of_every_algorithm_are_taken_for_what_they_are() {
    let provider = Provider::start("oidc-provider.mjs");
    let resource = |name: &str| {
        [("grant_type", "client_credentials"), ("scope", "databases"), ("resource", name)]
            .map(|(a, b)| (a, b.to_owned()))
    };
    let token = |name: &str| {
        let form = resource(name);
        provider.token(&form.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    use Algorithm::{EdDsa, Es256, Ps256, Rs256};
    let all = provider.issuer(|settings| {
        settings.algorithms = vec![Rs256, Ps256, Es256, EdDsa];
        settings.types = vec!["at+jwt".into()];
    });
    for (name, algorithm) in [("RS256", Rs256), ("PS256", Ps256), ("ES256", Es256), ("EdDSA", EdDsa)] {
        let token = token(&format!("urn:weir:{name}"));
        let verified = all
            .verify(&token.as_str().into(), SystemClock.now())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let identity = verified.into_identity("claude".into(), Some("agents")).expect("the client is the subject");
        let groups: Vec<_> = identity.groups.iter().map(|group| &*group.0).collect();
        assert_eq!(groups, ["corp/developers", "corp/oncall"], "{name}");
        assert!(identity.token_id.is_some());
        // Well signed, but not as this issuer is said to sign.
        let others = [Rs256, Ps256, Es256, EdDsa].into_iter().filter(|other| *other != algorithm).collect();
        let other = provider.issuer(|settings| settings.algorithms = others);
        assert!(refusal(&other, &token).await.contains(name), "{name}");
        let jwt = provider.issuer(|settings| {
            settings.algorithms = vec![algorithm];
            settings.types = vec!["JWT".into()];
        });
        assert!(refusal(&jwt, &token).await.contains("`typ`"), "{name}");
    }
    for (name, fault) in [
        ("urn:opaque", "has 1 parts"),
        ("urn:encrypted", "is encrypted (JWE)"),
        ("urn:other", "`aud` does not name `weir`"),
    ] {
        let refused = refusal(&all, &token(name)).await;
        assert!(refused.contains(fault), "{name}: {refused}");
    }
    // Another provider of the same make, with keys of the same names.
    let stranger = Provider::start("oidc-provider.mjs");
    let form = resource("urn:weir:ES256");
    let foreign = stranger.token(&form.each_ref().map(|(name, value)| (*name, value.as_str())));
    let refused = refusal(&all, &foreign).await;
    assert!(refused.contains("signature is wrong") || refused.contains("`iss`"), "{refused}");
}

#[tokio::test]
async fn a_provider_that_signs_whatever_it_is_told_gets_no_hostile_token_past() {
    let provider = Provider::start("oauth2-mock-server.mjs");
    let issuer = provider.issuer(|settings| {
        settings.max_age = Some(Duration::from_secs(600));
        settings.authorized_parties = vec!["agents".into()];
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let good = json!({ "payload": { "azp": "agents", "iat": now, "exp": now + 300 } });
    let token = |change: &Value| {
        let change = change.to_string();
        provider.token(&[("grant_type", "client_credentials"), ("scope", "x"), ("change", &change)])
    };
    let verified = issuer.verify(&token(&good).as_str().into(), SystemClock.now()).await.expect("good");
    let identity = verified.into_identity("claude".into(), Some("agent-7")).expect("the subject");
    assert_eq!(identity.groups.len(), 1);
    let rows = [
        ("payload", "exp", json!(now - 1), "has expired"),
        ("payload", "exp", Value::Null, "no `exp`"),
        ("payload", "exp", json!(now + 90_000), "longer than"),
        ("payload", "exp", json!("soon"), "`exp` is not"),
        ("payload", "nbf", json!(now + 600), "not valid for another"),
        ("payload", "iat", json!(now + 600), "in the future"),
        ("payload", "iat", json!(now - 700), "`max_age`"),
        ("payload", "iat", Value::Null, "`iat`"),
        ("payload", "iss", json!("https://elsewhere.example"), "`iss`"),
        ("payload", "iss", json!(format!("{}/", provider.url())), "`iss`"),
        ("payload", "aud", json!(["billing"]), "`aud`"),
        ("payload", "aud", Value::Null, "no `aud`"),
        ("payload", "sub", Value::Null, "no `sub`"),
        ("payload", "sub", json!("agent-7\u{202e}"), "control or invisible"),
        ("payload", "sub", json!(["agent-7"]), "`sub` is not"),
        ("payload", "azp", json!("others"), "`azp`"),
        ("payload", "azp", Value::Null, "`azp`"),
        ("payload", "groups", json!(7), "groups"),
        ("payload", "_claim_names", json!({ "groups": "src1" }), "`_claim_names`"),
        ("payload", "hasgroups", json!(true), "`hasgroups`"),
        ("payload", "cnf", json!({ "jkt": "x" }), "`cnf`"),
        ("header", "kid", json!("nobody"), "`kid`"),
        ("header", "kid", Value::Null, "`kid`"),
        ("header", "jku", json!("https://evil.example"), "has `jku`"),
        ("header", "x5u", json!("https://evil.example"), "has `x5u`"),
        ("header", "jwk", json!({}), "has `jwk`"),
    ];
    for (part, name, value, fault) in rows {
        let mut change = good.clone();
        change[part][name] = value.clone();
        let refused = refusal(&issuer, &token(&change)).await;
        assert!(refused.contains(fault), "{name} {value}: no `{fault}` in {refused}");
    }
}
