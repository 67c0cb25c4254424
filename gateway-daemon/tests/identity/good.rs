//! Tokens that are good, what is read from them, and what that costs.

use std::time::{Duration, Instant, UNIX_EPOCH};

use gateway_daemon::identity::token::{KeySet, KeySetError, MAX_GROUPS, Unverified};
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use crate::{
    keys::{ED25519, P256, P384, RSA},
    tokens::{
        ISSUER, NOW, NOW_AS_FRACTION, claims, good, good_claims, good_claims_with_text, keys, named, now, rules,
        verify, with_claim, with_header,
    },
};

#[test]
fn good_tokens_of_each_algorithm_are_taken() {
    for (key, alg) in [(&*RSA, "RS256"), (&*RSA, "PS256"), (&*P256, "ES256"), (&*P384, "ES384"), (&*ED25519, "EdDSA")] {
        let token = key.token(alg, &good_claims());
        let verified = verify(&token, &rules(|_| {})).unwrap_or_else(|error| panic!("{alg}: {error}"));
        let identity = verified.into_identity("claude".into(), Some("agent-7")).expect("the subject fits");
        assert_eq!(
            (&*identity.agent, &*identity.subject.issuer, &*identity.subject.subject),
            ("claude", ISSUER, "agent-7")
        );
        assert_eq!(identity.groups.iter().map(|group| &*group.0).collect::<Vec<_>>(), ["corp/developers"]);
        assert_eq!(identity.token_id.as_deref(), Some("id-1"));
        assert_eq!(identity.expires, UNIX_EPOCH + Duration::from_secs(NOW + 600));
        assert_eq!(
            identity.token_sha256,
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()).as_ref()
        );
    }
    for typ in ["JWT", "jwt", "at+jwt", "application/at+jwt"] {
        assert!(verify(&with_header("typ", json!(typ)), &rules(|_| {})).is_ok(), "{typ}");
    }
    for audience in [json!(["billing", "weir"]), json!(["weir"])] {
        assert!(verify(&with_claim("aud", audience), &rules(|_| {})).is_ok());
    }
    assert!(verify(&named("rsa-with-alg", &RSA, "RS256"), &rules(|_| {})).is_ok());
    let error = verify(&good(), &rules(|_| {})).expect("good").into_identity("claude".into(), Some("agent-8"));
    assert_eq!(
        error.unwrap_err().to_string(),
        "the token's subject is not the one that agent `claude` is configured for"
    );
}

#[test]
fn groups_come_from_every_shape_that_providers_use_sorted_and_qualified() {
    let groups = |pointers: &[&str], more: Value| {
        let mut claims = claims("groups", Value::Null);
        let more: Map<String, Value> = serde_json::from_value(more).expect("an object");
        claims.as_object_mut().expect("an object").extend(more);
        let rules = rules(|settings| settings.groups = pointers.iter().map(|&pointer| pointer.to_owned()).collect());
        let identity =
            verify(&RSA.token("RS256", &claims), &rules).expect("good").into_identity("a".into(), None).expect("good");
        identity.groups.iter().map(|group| group.0.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(groups(&["/groups"], json!({})), [""; 0]);
    assert_eq!(groups(&["/groups"], json!({"groups": []})), [""; 0]);
    assert_eq!(groups(&["/groups"], json!({"groups": ["b", "a", "b"]})), ["corp/a", "corp/b"]);
    assert_eq!(groups(&["/scp"], json!({"scp": "read  write"})), ["corp/read", "corp/write"]);
    assert_eq!(groups(&["/roles"], json!({"roles": {"admin": {"org": 1}, "dev": null}})), ["corp/admin", "corp/dev"]);
    assert_eq!(
        groups(
            &["/realm_access/roles", "/groups"],
            json!({"realm_access": {"roles": ["x"]}, "groups": ["/eng/backend"]})
        ),
        ["corp//eng/backend", "corp/x"]
    );
    assert_eq!(groups(&["/https:~1~1a.example~1groups"], json!({"https://a.example/groups": ["g"]})), ["corp/g"]);
    assert_eq!(groups(&["/a~01"], json!({"a~1": ["tilde"], "a/": ["slash"]})), ["corp/tilde"]);
    assert_eq!(
        groups(&["/groups"], json!({"groups": (0..MAX_GROUPS).map(|n| format!("g{n}")).collect::<Vec<_>>()})).len(),
        MAX_GROUPS
    );
}

#[test]
fn a_key_set_that_is_malformed_as_a_whole_is_refused() {
    let parse = |text: &str| KeySet::parse(text.as_bytes()).map(|keys| keys.len());
    assert_eq!(parse("{}"), Err(KeySetError::Keys));
    assert_eq!(parse(r#"{"keys":{}}"#), Err(KeySetError::Keys));
    assert_eq!(parse(r#"{"keys":[1]}"#), Err(KeySetError::Keys));
    assert!(matches!(parse("<html>"), Err(KeySetError::Json(_))));
    assert!(matches!(parse(r#"{"keys":[],"keys":[]}"#), Err(KeySetError::Json(_))));
    let set = |count: usize| json!({"keys": vec![json!({"kid": "a", "kty": "RSA"}); count]}).to_string();
    assert_eq!(parse(&set(101)), Err(KeySetError::TooMany { limit: 100 }));
    assert_eq!(parse(&set(100)), Ok(1));
}

proptest! {
    /// What is read is read as serde_json reads it, or refused: never otherwise, and never with a panic.
    #[test]
    fn whatever_is_signed_is_refused_or_read_as_others_read_it(
        name in prop::sample::select(vec!["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "act", "groups", "x"]),
        text in prop_oneof![".*", "[\\[\\]{}\":,0-9eE.+-]{0,24}", "[0-9]{1,30}(\\.[0-9]{1,10})?", "\"[a-z ]{0,8}\""],
    ) {
        let payload = good_claims_with_text(name, &text);
        let token = ED25519.token_of(r#"{"alg":"EdDSA","kid":"ed"}"#, &payload);
        if let Ok(verified) = verify(&token, &rules(|_| {})) {
            let read: Value = serde_json::from_str(&payload).expect("what is taken is JSON");
            let identity = verified.into_identity("a".into(), None).expect("any subject");
            prop_assert_eq!(read["iss"].as_str(), Some(ISSUER));
            prop_assert_eq!(read["sub"].as_str(), Some(&*identity.subject.subject));
            let expires = identity.expires.duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
            prop_assert!((read["exp"].as_f64().expect("a number") - expires).abs() < 1e-3);
            prop_assert!(expires > NOW_AS_FRACTION);
        }
    }

    #[test]
    fn no_text_panics(token in ".{0,200}|[A-Za-z0-9_.=-]{0,200}|e30\\.e30\\.[A-Za-z0-9_-]{0,90}") {
        let verified = verify(&token, &rules(|_| {}));
        prop_assert!(verified.is_err());
    }
}

#[test]
fn no_byte_changed_anywhere_leaves_a_token_good() {
    let rules = rules(|_| {});
    let keys = keys();
    let good = P256.token("ES256", &good_claims());
    for at in 0..good.len() {
        for with in [b'A', b'.', b'_', b'\n', b'='] {
            let mut bytes = good.clone().into_bytes();
            if bytes[at] == with {
                continue;
            }
            bytes[at] = with;
            let token = SecretString::from(String::from_utf8(bytes).expect("ASCII"));
            let verified = Unverified::parse(&token, &rules).and_then(|token| token.verify(&rules, &keys, now()));
            assert!(verified.is_err(), "byte {at} as {with}");
        }
    }
}

/// Not a benchmark: says what a verification costs, and fails when it costs what a flood of tokens could use.
#[test]
fn verifying_takes_microseconds_not_milliseconds() {
    let (rules, keys) = (rules(|_| {}), keys());
    for (key, alg) in [(&*RSA, "RS256"), (&*P256, "ES256"), (&*ED25519, "EdDSA")] {
        let token = SecretString::from(key.token(alg, &good_claims()));
        let rounds = 200;
        let start = Instant::now();
        for _ in 0..rounds {
            Unverified::parse(&token, &rules).and_then(|token| token.verify(&rules, &keys, now())).expect("good");
        }
        let each = start.elapsed() / rounds;
        println!("{alg}: {each:?} a token");
        assert!(each < Duration::from_millis(20), "{alg}: {each:?}");
    }
}
