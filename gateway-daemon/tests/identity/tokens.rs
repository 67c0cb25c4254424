//! Good tokens, tokens with one thing wrong, and the check that each is refused for that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_daemon::identity::token::{Algorithm, KeySet, TokenError, TokenRules, TokenSettings, Unverified, Verified};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::keys::{ED25519, Key, OTHER_RSA, P256, P384, RSA, base64};

pub(crate) const ISSUER: &str = "https://idp.example/realms/corp";
/// The time of these tests, in seconds since 1970.
pub(crate) const NOW: u64 = 1_800_000_000;

/// [`NOW`], for times between two seconds.
pub(crate) const NOW_AS_FRACTION: f64 = 1_800_000_000.0;

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) fn rules(change: impl FnOnce(&mut TokenSettings)) -> TokenRules {
    let mut settings = TokenSettings::new("corp", ISSUER, "weir");
    settings.algorithms = Algorithm::ALL.to_vec();
    change(&mut settings);
    TokenRules::new(settings).expect("rules")
}

/// The provider's keys, and some that are good for nothing.
pub(crate) fn keys() -> KeySet {
    let with = |mut jwk: Value, kid: &str, changes: &[(&str, Value)]| {
        jwk["kid"] = json!(kid);
        for (name, value) in changes {
            jwk[*name] = value.clone();
        }
        jwk
    };
    let without_purpose = |mut jwk: Value, kid: &str| {
        jwk.as_object_mut().expect("an object").remove("use");
        with(jwk, kid, &[])
    };
    let modulus = |bits: usize| json!(base64(&vec![0xff; bits / 8]));
    let set = json!({"keys": [
        RSA.jwk(), P256.jwk(), P384.jwk(), ED25519.jwk(),
        with(RSA.jwk(), "rsa-with-alg", &[("alg", json!("RS256"))]),
        with(RSA.jwk(), "for-encryption", &[("use", json!("enc"))]),
        with(RSA.jwk(), "for-wrapping", &[("key_ops", json!(["wrapKey"]))]),
        without_purpose(RSA.jwk(), "for-anything"),
        with(RSA.jwk(), "weak", &[("n", modulus(1024))]),
        with(RSA.jwk(), "just-weak", &[("n", json!(base64(&[&[0x7f][..], &[0xff; 255]].concat())))]),
        with(RSA.jwk(), "padded-weak", &[("n", json!(base64(&[&[0][..], &[0xff; 255]].concat())))]),
        with(RSA.jwk(), "huge", &[("n", modulus(16384))]),
        with(RSA.jwk(), "symmetric", &[("kty", json!("oct")), ("k", json!(base64(b"secret")))]),
        with(RSA.jwk(), "oct-without-k", &[("kty", json!("oct"))]),
        with(RSA.jwk(), "private", &[("d", json!("AQAB"))]),
        with(P256.jwk(), "p256-as-p384", &[("crv", json!("P-384"))]),
        with(P256.jwk(), "secp256k1", &[("crv", json!("secp256k1"))]),
        with(P256.jwk(), "off-curve", &[("y", P256.jwk()["x"].clone())]),
        with(RSA.jwk(), "twice", &[]), with(OTHER_RSA.jwk(), "twice", &[]),
        {"kty": "RSA", "use": "sig", "n": "AQAB", "e": "AQAB"},
    ]});
    KeySet::parse(set.to_string().as_bytes()).expect("a key set")
}

pub(crate) fn verify(token: &str, rules: &TokenRules) -> Result<Verified, TokenError> {
    Unverified::parse(&SecretString::from(token), rules)?.verify(rules, &keys(), now())
}

pub(crate) fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "weir", "sub": "agent-7", "jti": "id-1",
        "exp": NOW + 600, "iat": NOW - 1, "nbf": NOW - 1, "groups": ["developers"],
    })
}

/// Good claims, one of them different; `null` takes it away.
pub(crate) fn claims(name: &str, value: Value) -> Value {
    let mut claims = good_claims();
    match value {
        Value::Null => claims.as_object_mut().and_then(|claims| claims.remove(name)),
        value => claims.as_object_mut().and_then(|claims| claims.insert(name.to_owned(), value)),
    };
    claims
}

pub(crate) fn with_claim(name: &str, value: Value) -> String {
    RSA.token("RS256", &claims(name, value))
}

/// A good token whose header has one field more, or another one.
pub(crate) fn with_header(name: &str, value: Value) -> String {
    let mut header = json!({"alg": "RS256", "kid": RSA.kid, "typ": "JWT"});
    header[name] = value;
    RSA.token_of(&header.to_string(), &good_claims().to_string())
}

pub(crate) fn named(kid: &str, key: &Key, alg: &str) -> String {
    key.token_of(&json!({"alg": alg, "kid": kid}).to_string(), &good_claims().to_string())
}

pub(crate) fn with_payload_text(payload: &str) -> String {
    RSA.token_of(&json!({"alg": "RS256", "kid": RSA.kid}).to_string(), payload)
}

/// Good claims as text, with more behind them.
pub(crate) fn claims_and(more: &str) -> String {
    let text = good_claims().to_string();
    with_payload_text(&format!("{},{more}}}", &text[..text.len() - 1]))
}

/// Good claims without one, and the text in its place.
pub(crate) fn claims_without_and(name: &str, more: &str) -> String {
    let text = claims(name, Value::Null).to_string();
    with_payload_text(&format!("{},{more}}}", &text[..text.len() - 1]))
}

/// The text of good claims, one of which has this text as its value.
pub(crate) fn good_claims_with_text(name: &str, value: &str) -> String {
    let text = claims(name, Value::Null).to_string();
    format!("{},\"{name}\":{value}}}", &text[..text.len() - 1])
}

pub(crate) fn good() -> String {
    RSA.token("RS256", &good_claims())
}

/// The three parts of a good token, one of them changed.
pub(crate) fn with_parts(change: impl FnOnce(&mut [String; 3])) -> String {
    let token = good();
    let mut parts: [String; 3] =
        token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().expect("three parts");
    change(&mut parts);
    parts.join(".")
}

/// Each token is refused with exactly this message, and no message shows any of the token.
pub(crate) fn refused<'a>(rules: &TokenRules, table: impl IntoIterator<Item = (&'a str, String, &'a str)>) {
    refused_with(rules, "", table);
}

pub(crate) fn refused_with<'a>(
    rules: &TokenRules,
    prefix: &str,
    table: impl IntoIterator<Item = (&'a str, String, &'a str)>,
) {
    let mut faults = Vec::new();
    for (what, token, message) in table {
        match verify(&token, rules) {
            Ok(_) => faults.push(format!("{what}: taken")),
            Err(error) => {
                let found = error.to_string();
                if found != format!("{prefix}{message}") {
                    faults.push(format!("{what}: {found}"));
                }
                let shown = format!("{found} {error:?}");
                if token.split('.').any(|part| part.len() > 8 && shown.contains(part)) || shown.contains("evil") {
                    faults.push(format!("{what}: shows the token"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    verify(&good(), &self::rules(|_| {})).expect("the token that all of these were made from");
}

/// An array in an array…, `depth` deep, to stand one level inside.
pub(crate) fn nested(depth: usize) -> Value {
    (1..depth).fold(json!([]), |inner, _| json!([inner]))
}
