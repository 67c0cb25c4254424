//! Tokens that must be refused, each for its own reason; beside each rule the token that keeps it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_daemon::identity::token::{
    Algorithm, KeySet, KeySetError, MAX_GROUPS, MAX_TOKEN_LEN, TokenError, TokenRules,
    TokenSettings, Unverified, Verified,
};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use crate::keys::{ED25519, Key, OTHER_RSA, P256, P384, RSA, base64};

const ISSUER: &str = "https://idp.example/realms/corp";
/// The time of these tests, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn rules(change: impl FnOnce(&mut TokenSettings)) -> TokenRules {
    let mut settings = TokenSettings::new("corp", ISSUER, "weir");
    settings.algorithms = Algorithm::ALL.to_vec();
    change(&mut settings);
    TokenRules::new(settings).expect("rules")
}

/// The provider's keys, and some that are good for nothing.
fn keys() -> KeySet {
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

fn verify(token: &str, rules: &TokenRules) -> Result<Verified, TokenError> {
    Unverified::parse(&SecretString::from(token), rules)?.verify(rules, &keys(), now())
}

fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "weir", "sub": "agent-7", "jti": "id-1",
        "exp": NOW + 600, "iat": NOW - 1, "nbf": NOW - 1, "groups": ["developers"],
    })
}

/// Good claims, one of them different; `null` takes it away.
fn claims(name: &str, value: Value) -> Value {
    let mut claims = good_claims();
    match value {
        Value::Null => claims.as_object_mut().and_then(|claims| claims.remove(name)),
        value => claims.as_object_mut().and_then(|claims| claims.insert(name.to_owned(), value)),
    };
    claims
}

fn with_claim(name: &str, value: Value) -> String {
    RSA.token("RS256", &claims(name, value))
}

/// A good token whose header has one field more, or another one.
fn with_header(name: &str, value: Value) -> String {
    let mut header = json!({"alg": "RS256", "kid": RSA.kid, "typ": "JWT"});
    header[name] = value;
    RSA.token_of(&header.to_string(), &good_claims().to_string())
}

fn named(kid: &str, key: &Key, alg: &str) -> String {
    key.token_of(&json!({"alg": alg, "kid": kid}).to_string(), &good_claims().to_string())
}

fn with_payload_text(payload: &str) -> String {
    RSA.token_of(&json!({"alg": "RS256", "kid": RSA.kid}).to_string(), payload)
}

/// Good claims as text, with more behind them.
fn claims_and(more: &str) -> String {
    let text = good_claims().to_string();
    with_payload_text(&format!("{},{more}}}", &text[..text.len() - 1]))
}

fn good() -> String {
    RSA.token("RS256", &good_claims())
}

/// The three parts of a good token, one of them changed.
fn with_parts(change: impl FnOnce(&mut [String; 3])) -> String {
    let token = good();
    let mut parts: [String; 3] =
        token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().expect("three parts");
    change(&mut parts);
    parts.join(".")
}

#[test]
fn form_header_and_key_are_checked_before_anything_is_believed() {
    let hs256 = || {
        let signed = format!(
            "{}.{}",
            base64(json!({"alg": "HS256", "kid": RSA.kid}).to_string().as_bytes()),
            base64(good_claims().to_string().as_bytes())
        );
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &RSA.public_der());
        format!("{signed}.{}", base64(aws_lc_rs::hmac::sign(&secret, signed.as_bytes()).as_ref()))
    };
    let unsigned = |alg: &str| {
        let header = base64(json!({"alg": alg}).to_string().as_bytes());
        format!("{header}.{}.AA", base64(good_claims().to_string().as_bytes()))
    };
    refused(
        &rules(|_| {}),
        [
            ("nothing", String::new(), "the token is empty"),
            (
                "oversize",
                with_claim("x", json!("x".repeat(MAX_TOKEN_LEN))),
                "the token is longer than 16384 bytes",
            ),
            (
                "a JWE",
                format!("{}.AA.AA", good()),
                "the token is encrypted (JWE); a signed one (JWS) is wanted",
            ),
            (
                "a fourth part",
                format!("{}.AA", good()),
                "the token has 4 parts separated by dots instead of 3",
            ),
            (
                "a dot at the end",
                format!("{}.", good()),
                "the token has 4 parts separated by dots instead of 3",
            ),
            ("two parts", "e30.e30".into(), "the token has 2 parts separated by dots instead of 3"),
            ("one part", "token".into(), "the token has 1 parts separated by dots instead of 3"),
            ("no header", with_parts(|parts| parts[0].clear()), "the token's header is empty"),
            ("no payload", with_parts(|parts| parts[1].clear()), "the token's payload is empty"),
            (
                "no signature",
                with_parts(|parts| parts[2].clear()),
                "the token's signature is empty",
            ),
            (
                "padding",
                with_parts(|parts| parts[2].push_str("==")),
                "the token's signature has base64 padding (RFC 7515 section 2 has none)",
            ),
            (
                "a space in front",
                format!(" {}", good()),
                "the token's header has a character that base64url does not have",
            ),
            (
                "a line end behind",
                format!("{}\n", good()),
                "the token's signature has a character that base64url does not have",
            ),
            (
                "a line break inside",
                with_parts(|parts| parts[1].insert(8, '\n')),
                "the token's payload has a character that base64url does not have",
            ),
            (
                "base64's other alphabet",
                with_parts(|parts| parts[1].replace_range(4..5, "+")),
                "the token's payload has a character that base64url does not have",
            ),
            (
                "bits left over",
                // 256 bytes end in a character with four bits that count for nothing.
                with_parts(|parts| {
                    let last = parts[2].pop().expect("a character");
                    parts[2].push(if last == 'B' { 'C' } else { 'B' });
                }),
                "the token's signature is not canonical base64url",
            ),
            (
                "a length that no bytes have",
                with_parts(|parts| parts[0] = "abcde".into()),
                "the token's header is not canonical base64url",
            ),
            (
                "a header that is no JSON",
                with_parts(|parts| parts[0] = base64(b"{alg}")),
                "the token's header is not JSON",
            ),
            (
                "an array as header",
                with_parts(|parts| parts[0] = base64(b"[]")),
                "the token's header is not a JSON object",
            ),
            (
                "alg twice",
                RSA.token_of(
                    r#"{"alg":"RS256","alg":"none","kid":"rsa"}"#,
                    &good_claims().to_string(),
                ),
                "the token's header names a key twice",
            ),
            (
                "kid twice behind an escape",
                RSA.token_of(
                    r#"{"alg":"RS256","kid":"rsa","\u006bid":"p256"}"#,
                    &good_claims().to_string(),
                ),
                "the token's header names a key twice",
            ),
            (
                "a deep header",
                with_header("x", nested(16)),
                "the token's header is nested deeper than 16 levels",
            ),
            (
                "crit",
                with_header("crit", json!(["exp"])),
                "the token's header has `crit`, which is never accepted",
            ),
            (
                "jku",
                with_header("jku", json!("https://evil.example/keys")),
                "the token's header has `jku`, which is never accepted",
            ),
            (
                "jwk",
                with_header("jwk", OTHER_RSA.jwk()),
                "the token's header has `jwk`, which is never accepted",
            ),
            (
                "x5u",
                with_header("x5u", json!("https://evil.example/chain")),
                "the token's header has `x5u`, which is never accepted",
            ),
            (
                "x5c",
                with_header("x5c", json!(["AA"])),
                "the token's header has `x5c`, which is never accepted",
            ),
            (
                "zip",
                with_header("zip", json!("DEF")),
                "the token's header has `zip`, which is never accepted",
            ),
            (
                "b64",
                with_header("b64", json!(false)),
                "the token's header has `b64`, which is never accepted",
            ),
            (
                "enc",
                with_header("enc", json!("A256GCM")),
                "the token's header has `enc`, which is never accepted",
            ),
            ("no alg", RSA.token_of(r#"{"kid":"rsa"}"#, "{}"), "the token's header has no `alg`"),
            ("alg as a number", with_header("alg", json!(256)), "the token's header has no `alg`"),
            ("none", unsigned("none"), "the token is not signed (`alg` is `none`)"),
            (
                "none in capitals and small letters",
                unsigned("nOnE"),
                "the token is not signed (`alg` is `none`)",
            ),
            (
                "HS256 with the public key as secret",
                hs256(),
                "the token's `alg` is symmetric (HMAC): who can check such a token can make one",
            ),
            (
                "an unknown alg",
                with_header("alg", json!("RS1")),
                "the token's `alg` is none that Weir knows",
            ),
            (
                "alg in another case",
                with_header("alg", json!("rs256")),
                "the token's `alg` is none that Weir knows",
            ),
            (
                "a DPoP proof",
                with_header("typ", json!("dpop+jwt")),
                "the token's `typ` is neither `JWT` nor `at+jwt`",
            ),
            (
                "a logout token",
                with_header("typ", json!("logout+jwt")),
                "the token's `typ` is neither `JWT` nor `at+jwt`",
            ),
            (
                "typ as an array",
                with_header("typ", json!(["JWT"])),
                "the token's `typ` is neither `JWT` nor `at+jwt`",
            ),
            (
                "no kid",
                RSA.token_of(r#"{"alg":"RS256"}"#, &good_claims().to_string()),
                "the token's header has no `kid`",
            ),
            (
                "kid as a number",
                with_header("kid", json!(1)),
                "the token's `kid` is not a string of 1 to 256 bytes",
            ),
            (
                "an empty kid",
                with_header("kid", json!("")),
                "the token's `kid` is not a string of 1 to 256 bytes",
            ),
            (
                "a long kid",
                with_header("kid", json!("k".repeat(257))),
                "the token's `kid` is not a string of 1 to 256 bytes",
            ),
            (
                "an unknown kid",
                named("nobody", &RSA, "RS256"),
                "the issuer has no key with the token's `kid`",
            ),
            (
                "kid in another case",
                named("RSA", &RSA, "RS256"),
                "the issuer has no key with the token's `kid`",
            ),
            (
                "a path as kid",
                named("../../dev/null", &RSA, "RS256"),
                "the issuer has no key with the token's `kid`",
            ),
        ],
    );
}

#[test]
fn a_key_is_used_for_what_it_is_alone() {
    const UNFIT: &str = "the issuer's key with the token's `kid` cannot be used: ";
    let purpose = "it is not declared for signatures (`use` or `key_ops`)";
    refused_with(
        &rules(|_| {}),
        UNFIT,
        [
            ("use=enc", named("for-encryption", &RSA, "RS256"), purpose),
            ("key_ops without verify", named("for-wrapping", &RSA, "RS256"), purpose),
            ("neither use nor key_ops", named("for-anything", &RSA, "RS256"), purpose),
            (
                "1024 bits of RSA",
                named("weak", &RSA, "RS256"),
                "its RSA modulus has 1024 bits; 2048 to 8192 are accepted",
            ),
            (
                "2047 bits of RSA",
                named("just-weak", &RSA, "RS256"),
                "its RSA modulus has 2047 bits; 2048 to 8192 are accepted",
            ),
            (
                "a weak modulus behind a zero",
                named("padded-weak", &RSA, "RS256"),
                "its parameters are malformed",
            ),
            (
                "16384 bits of RSA",
                named("huge", &RSA, "RS256"),
                "its RSA modulus has 16384 bits; 2048 to 8192 are accepted",
            ),
            (
                "a published secret",
                named("symmetric", &RSA, "RS256"),
                "the set shows its private part",
            ),
            (
                "a published private key",
                named("private", &RSA, "RS256"),
                "the set shows its private part",
            ),
            (
                "kty=oct",
                named("oct-without-k", &RSA, "RS256"),
                "its type (`kty`) is none that Weir knows",
            ),
            (
                "ES256 under an RSA key's kid",
                named("rsa", &P256, "ES256"),
                "it is a RSA key, which cannot make ES256 signatures",
            ),
            (
                "RS256 under an EC key's kid",
                named("p256", &RSA, "RS256"),
                "it is a P-256 key, which cannot make RS256 signatures",
            ),
            (
                "ES256 with a P-384 key",
                named("p384", &P384, "ES256"),
                "it is a P-384 key, which cannot make ES256 signatures",
            ),
            (
                "EdDSA under an EC key's kid",
                named("p256", &ED25519, "EdDSA"),
                "it is a P-256 key, which cannot make EdDSA signatures",
            ),
            (
                "ES384 under an Ed25519 key's kid",
                named("ed", &P384, "ES384"),
                "it is a Ed25519 key, which cannot make ES384 signatures",
            ),
            (
                "coordinates of another curve",
                named("p256-as-p384", &P256, "ES384"),
                "its parameters are malformed",
            ),
            (
                "a curve for coins",
                named("secp256k1", &P256, "ES256"),
                "its curve (`crv`) is none that Weir knows",
            ),
            (
                "PS256 with a key for RS256",
                named("rsa-with-alg", &RSA, "PS256"),
                "its `alg` is not the token's PS256",
            ),
            (
                "a kid that two keys have",
                named("twice", &RSA, "RS256"),
                "the set has more than one key with this `kid`",
            ),
        ],
    );
    let only_rs256 = rules(|settings| settings.algorithms = vec![Algorithm::Rs256]);
    refused(
        &only_rs256,
        [(
            "an algorithm that the operator left out",
            P256.token("ES256", &good_claims()),
            "the token is signed with ES256, which is not in `algorithms` of this issuer",
        )],
    );
}

#[test]
fn a_signature_holds_for_one_key_and_one_text() {
    let cut = |bytes: usize| with_parts(|parts| parts[2] = base64(&vec![0x5a; bytes]));
    let es256_as_der = || {
        // DER, as other software writes ECDSA signatures, is longer than the 64 bytes of RFC 7518.
        let token = P256.token("ES256", &good_claims());
        format!("{}.{}", token.rsplit_once('.').expect("a signature").0, base64(&[0x30; 70]))
    };
    let zeros = || {
        let token = P256.token("ES256", &good_claims());
        format!("{}.{}", token.rsplit_once('.').expect("a signature").0, base64(&[0; 64]))
    };
    let spliced = || {
        let other = with_claim("sub", json!("root"));
        let parts: Vec<_> = other.split('.').collect();
        with_parts(|good| good[1] = parts[1].to_owned())
    };
    let wrong = "the token's signature is wrong";
    refused(
        &rules(|_| {}),
        [
            (
                "a truncated signature",
                cut(255),
                "the token's signature has 255 bytes instead of 256",
            ),
            ("a signature of one byte", cut(1), "the token's signature has 1 bytes instead of 256"),
            ("a longer signature", cut(257), "the token's signature has 257 bytes instead of 256"),
            (
                "an ECDSA signature in DER",
                es256_as_der(),
                "the token's signature has 70 bytes instead of 64",
            ),
            ("an ECDSA signature of zeros", zeros(), wrong),
            ("other bytes", cut(256), wrong),
            ("another key under the same kid", named("rsa", &OTHER_RSA, "RS256"), wrong),
            ("another payload", spliced(), wrong),
            (
                "PS256 said, PKCS #1 made",
                {
                    let token = RSA.token("RS256", &good_claims());
                    let header =
                        base64(json!({"alg": "PS256", "kid": "rsa"}).to_string().as_bytes());
                    let parts: Vec<_> = token.split('.').collect();
                    format!("{header}.{}.{}", parts[1], parts[2])
                },
                wrong,
            ),
            ("a key off its curve", named("off-curve", &P256, "ES256"), wrong),
        ],
    );
}

#[test]
fn claims_are_read_one_way_only() {
    let issuer = "the token's `iss` is not exactly `https://idp.example/realms/corp`";
    let audience = "the token's `aud` does not name `weir`";
    refused(
        &rules(|_| {}),
        [
            (
                "a payload that is no JSON",
                with_payload_text("{"),
                "the token's payload is not JSON",
            ),
            (
                "a string as payload",
                with_payload_text("\"x\""),
                "the token's payload is not a JSON object",
            ),
            (
                "two payloads",
                with_payload_text(&format!("{0}{0}", good_claims())),
                "the token's payload is not JSON",
            ),
            (
                "iss twice",
                claims_and(r#""iss":"https://evil.example""#),
                "the token's payload names a key twice",
            ),
            (
                "iss twice behind an escape",
                claims_and(r#""\u0069ss":"https://evil.example""#),
                "the token's payload names a key twice",
            ),
            (
                "a key twice deep inside",
                claims_and(r#""x":[{"a":{"b":1,"b":2}}]"#),
                "the token's payload names a key twice",
            ),
            (
                "deep nesting",
                with_claim("x", nested(16)),
                "the token's payload is nested deeper than 16 levels",
            ),
            ("no iss", with_claim("iss", Value::Null), "the token has no `iss`"),
            (
                "iss as an array",
                with_claim("iss", json!(["https://evil.example", ISSUER])),
                "the token's `iss` is not a string",
            ),
            ("another iss", with_claim("iss", json!("https://evil.example")), issuer),
            ("iss with a slash more", with_claim("iss", json!(format!("{ISSUER}/"))), issuer),
            (
                "iss in another case",
                with_claim("iss", json!("https://IDP.example/realms/corp")),
                issuer,
            ),
            (
                "iss with a prefix that fits",
                with_claim("iss", json!(format!("{ISSUER}.evil.example"))),
                issuer,
            ),
            ("no aud", with_claim("aud", Value::Null), "the token has no `aud`"),
            ("another aud", with_claim("aud", json!("billing")), audience),
            ("an aud array without us", with_claim("aud", json!(["billing", "weir2"])), audience),
            ("an empty aud array", with_claim("aud", json!([])), audience),
            ("aud with a wildcard", with_claim("aud", json!("*")), audience),
            (
                "aud as an object",
                with_claim("aud", json!({"weir": true})),
                "the token's `aud` is not a string or an array of strings",
            ),
            (
                "an aud array with a number",
                with_claim("aud", json!(["weir", 1])),
                "the token's `aud` is not a string or an array of strings",
            ),
            ("no sub", with_claim("sub", Value::Null), "the token has no `sub`"),
            (
                "sub as an array",
                with_claim("sub", json!(["agent-7"])),
                "the token's `sub` is not a string",
            ),
            ("sub as a number", with_claim("sub", json!(7)), "the token's `sub` is not a string"),
            ("an empty sub", with_claim("sub", json!("")), "the token's `sub` is empty"),
            (
                "a long sub",
                with_claim("sub", json!("s".repeat(256))),
                "the token's `sub` is longer than 255 bytes",
            ),
            (
                "sub with a NUL",
                with_claim("sub", json!("agent-7\0root")),
                "the token's `sub` has control or invisible characters",
            ),
            (
                "sub with an escape sequence",
                with_claim("sub", json!("\u{1b}[2Jroot")),
                "the token's `sub` has control or invisible characters",
            ),
            (
                "sub with a turn of direction",
                with_claim("sub", json!("agent\u{202e}7")),
                "the token's `sub` has control or invisible characters",
            ),
            (
                "sub with a zero-width space",
                with_claim("sub", json!("agent\u{200b}7")),
                "the token's `sub` has control or invisible characters",
            ),
            ("jti as an object", with_claim("jti", json!({})), "the token's `jti` is not a string"),
            (
                "a long jti",
                with_claim("jti", json!("j".repeat(257))),
                "the token's `jti` is longer than 256 bytes",
            ),
            (
                "act as a string",
                with_claim("act", json!("root")),
                "the token's `act` is not an object",
            ),
            (
                "a long act",
                with_claim("act", json!({"sub": "a".repeat(4096)})),
                "the token's `act` is longer than 4096 bytes",
            ),
            (
                "a token bound to a key",
                with_claim("cnf", json!({"jkt": "x"})),
                "the token is bound to a key (`cnf`), which Weir cannot check",
            ),
        ],
    );
}

#[test]
fn times_are_numbers_in_bounds_and_hold() {
    let range = |claim: &str| format!("the token's `{claim}` is not a time between 1970 and 9999");
    refused(
        &rules(|_| {}),
        [
            ("no exp", with_claim("exp", Value::Null), "the token has no `exp`"),
            (
                "exp as null",
                claims_without_and("exp", r#""exp":null"#),
                "the token's `exp` is not a number",
            ),
            (
                "exp as a string",
                with_claim("exp", json!("1900000000")),
                "the token's `exp` is not a number",
            ),
            ("exp as true", with_claim("exp", json!(true)), "the token's `exp` is not a number"),
            ("a negative exp", with_claim("exp", json!(-1)), &*range("exp")),
            ("a huge exp", with_claim("exp", json!(u64::MAX)), &*range("exp")),
            (
                "an exp in milliseconds",
                with_claim("exp", json!((NOW + 600) * 1000)),
                &*range("exp"),
            ),
            ("an exp of 1e300", claims_without_and("exp", r#""exp":1e300"#), &*range("exp")),
            (
                "an exp that no number holds",
                claims_without_and("exp", r#""exp":1e999"#),
                "the token's payload is not JSON",
            ),
            ("expired", with_claim("exp", json!(NOW - 5)), "the token has expired 5 seconds ago"),
            (
                "expired this second",
                with_claim("exp", json!(NOW)),
                "the token has expired 0 seconds ago",
            ),
            (
                "expired by a fraction",
                with_claim("exp", json!(NOW as f64 - 0.5)),
                "the token has expired 0 seconds ago",
            ),
            (
                "longer than a day",
                with_claim("exp", json!(NOW + 86_401)),
                "the token is valid for longer than 86400 seconds from now (`max_lifetime` of this issuer)",
            ),
            (
                "nbf to come",
                with_claim("nbf", json!(NOW + 61)),
                "the token is not valid for another 61 seconds (`nbf`)",
            ),
            ("nbf as a string", with_claim("nbf", json!("0")), "the token's `nbf` is not a number"),
            ("a negative nbf", with_claim("nbf", json!(-1)), &*range("nbf")),
            (
                "iat to come",
                with_claim("iat", json!(NOW + 61)),
                "the token was issued 61 seconds in the future (`iat`): check the clocks",
            ),
            (
                "iat as an array",
                with_claim("iat", json!([NOW])),
                "the token's `iat` is not a number",
            ),
        ],
    );
    for (what, name, value) in [
        ("exp in the next second", "exp", json!(NOW + 1)),
        ("exp in half a second", "exp", json!(NOW as f64 + 0.5)),
        ("exp in a day", "exp", json!(NOW + 86_400)),
        ("nbf within the leeway", "nbf", json!(NOW + 60)),
        ("iat within the leeway", "iat", json!(NOW as f64 + 59.5)),
        ("no nbf", "nbf", Value::Null),
        ("no iat", "iat", Value::Null),
    ] {
        verify(&with_claim(name, value), &rules(|_| {}))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn groups_that_are_left_out_or_cannot_be_read_refuse_the_token() {
    let many: Vec<_> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
    let overage = |claim: &str| {
        format!(
            "group overage: the provider left the groups out of the token (`{claim}`); have it send fewer groups, or roles"
        )
    };
    let shape = "what `/groups` leads to in the token is neither an array of strings, a string nor an object";
    let name = "a group below `/groups` in the token is empty, longer than 256 bytes, or has control or invisible characters";
    refused(
        &rules(|_| {}),
        [
            (
                "Entra's overage",
                with_claim("_claim_names", json!({"groups": "src1"})),
                &*overage("_claim_names"),
            ),
            ("Entra's other overage", with_claim("hasgroups", json!(true)), &*overage("hasgroups")),
            ("sources alone", with_claim("_claim_sources", json!({})), &*overage("_claim_sources")),
            ("groups as a number", with_claim("groups", json!(5)), shape),
            ("groups as true", with_claim("groups", json!(true)), shape),
            ("a number among groups", with_claim("groups", json!(["developers", 5])), shape),
            ("an array among groups", with_claim("groups", json!([["admins"]])), shape),
            ("an empty group", with_claim("groups", json!([""])), name),
            ("a long group", with_claim("groups", json!(["g".repeat(257)])), name),
            ("a group with a line end", with_claim("groups", json!(["developers\nadmins"])), name),
            ("an invisible group", with_claim("groups", json!({"\u{200b}": 1})), name),
            (
                "too many groups",
                with_claim("groups", json!(many)),
                "the token has more than 500 groups",
            ),
        ],
    );
}

#[test]
fn good_tokens_of_each_algorithm_are_taken() {
    for (key, alg) in [
        (&*RSA, "RS256"),
        (&*RSA, "PS256"),
        (&*P256, "ES256"),
        (&*P384, "ES384"),
        (&*ED25519, "EdDSA"),
    ] {
        let token = key.token(alg, &good_claims());
        let verified =
            verify(&token, &rules(|_| {})).unwrap_or_else(|error| panic!("{alg}: {error}"));
        let identity =
            verified.into_identity("claude".into(), Some("agent-7")).expect("the subject fits");
        assert_eq!(
            (&*identity.agent, &*identity.subject.issuer, &*identity.subject.subject),
            ("claude", ISSUER, "agent-7")
        );
        assert_eq!(
            identity.groups.iter().map(|group| &*group.0).collect::<Vec<_>>(),
            ["corp/developers"]
        );
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
    let error = verify(&good(), &rules(|_| {}))
        .expect("good")
        .into_identity("claude".into(), Some("agent-8"));
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
        let rules = rules(|settings| {
            settings.groups = pointers.iter().map(|&pointer| pointer.to_owned()).collect()
        });
        let identity = verify(&RSA.token("RS256", &claims), &rules)
            .expect("good")
            .into_identity("a".into(), None)
            .expect("good");
        identity.groups.iter().map(|group| group.0.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(groups(&["/groups"], json!({})), [""; 0]);
    assert_eq!(groups(&["/groups"], json!({"groups": []})), [""; 0]);
    assert_eq!(groups(&["/groups"], json!({"groups": ["b", "a", "b"]})), ["corp/a", "corp/b"]);
    assert_eq!(groups(&["/scp"], json!({"scp": "read  write"})), ["corp/read", "corp/write"]);
    assert_eq!(
        groups(&["/roles"], json!({"roles": {"admin": {"org": 1}, "dev": null}})),
        ["corp/admin", "corp/dev"]
    );
    assert_eq!(
        groups(
            &["/realm_access/roles", "/groups"],
            json!({"realm_access": {"roles": ["x"]}, "groups": ["/eng/backend"]})
        ),
        ["corp//eng/backend", "corp/x"]
    );
    assert_eq!(
        groups(&["/https:~1~1a.example~1groups"], json!({"https://a.example/groups": ["g"]})),
        ["corp/g"]
    );
    assert_eq!(groups(&["/a~01"], json!({"a~1": ["tilde"], "a/": ["slash"]})), ["corp/tilde"]);
    assert_eq!(
        groups(
            &["/groups"],
            json!({"groups": (0..MAX_GROUPS).map(|n| format!("g{n}")).collect::<Vec<_>>()})
        )
        .len(),
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
    let set =
        |count: usize| json!({"keys": vec![json!({"kid": "a", "kty": "RSA"}); count]}).to_string();
    assert_eq!(parse(&set(101)), Err(KeySetError::TooMany { limit: 100 }));
    assert_eq!(parse(&set(100)), Ok(1));
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
            let verified = Unverified::parse(&token, &rules)
                .and_then(|token| token.verify(&rules, &keys, now()));
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
            Unverified::parse(&token, &rules)
                .and_then(|token| token.verify(&rules, &keys, now()))
                .expect("good");
        }
        let each = start.elapsed() / rounds;
        println!("{alg}: {each:?} a token");
        assert!(each < Duration::from_millis(20), "{alg}: {each:?}");
    }
}

/// Each token is refused with exactly this message, and no message shows any of the token.
fn refused<'a>(rules: &TokenRules, table: impl IntoIterator<Item = (&'a str, String, &'a str)>) {
    refused_with(rules, "", table);
}

fn refused_with<'a>(
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
                if token.split('.').any(|part| part.len() > 8 && shown.contains(part))
                    || shown.contains("evil")
                {
                    faults.push(format!("{what}: shows the token"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    verify(&good(), &self::rules(|_| {})).expect("the token that all of these were made from");
}

/// An array in an array…, `depth` deep, to stand one level inside.
fn nested(depth: usize) -> Value {
    (1..depth).fold(json!([]), |inner, _| json!([inner]))
}

/// Good claims without one, and the text in its place.
fn claims_without_and(name: &str, more: &str) -> String {
    let text = claims(name, Value::Null).to_string();
    with_payload_text(&format!("{},{more}}}", &text[..text.len() - 1]))
}
