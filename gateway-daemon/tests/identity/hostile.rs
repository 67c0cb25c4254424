//! Tokens whose form, header, key or signature must be refused, each for its own reason.

use gateway_daemon::identity::token::{Algorithm, MAX_TOKEN_LEN};
use serde_json::json;

use crate::{
    keys::{ED25519, OTHER_RSA, P256, P384, RSA, base64},
    tokens::{good, good_claims, named, nested, refused, refused_with, rules, with_claim, with_header, with_parts},
};

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
            ("oversize", with_claim("x", json!("x".repeat(MAX_TOKEN_LEN))), "the token is longer than 16384 bytes"),
            ("a JWE", format!("{}.AA.AA", good()), "the token is encrypted (JWE); a signed one (JWS) is wanted"),
            ("a fourth part", format!("{}.AA", good()), "the token has 4 parts separated by dots instead of 3"),
            ("a dot at the end", format!("{}.", good()), "the token has 4 parts separated by dots instead of 3"),
            ("two parts", "e30.e30".into(), "the token has 2 parts separated by dots instead of 3"),
            ("one part", "token".into(), "the token has 1 parts separated by dots instead of 3"),
            ("no header", with_parts(|parts| parts[0].clear()), "the token's header is empty"),
            ("no payload", with_parts(|parts| parts[1].clear()), "the token's payload is empty"),
            ("no signature", with_parts(|parts| parts[2].clear()), "the token's signature is empty"),
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
                RSA.token_of(r#"{"alg":"RS256","alg":"none","kid":"rsa"}"#, &good_claims().to_string()),
                "the token's header names a key twice",
            ),
            (
                "kid twice behind an escape",
                RSA.token_of(r#"{"alg":"RS256","kid":"rsa","\u006bid":"p256"}"#, &good_claims().to_string()),
                "the token's header names a key twice",
            ),
            ("a deep header", with_header("x", nested(16)), "the token's header is nested deeper than 16 levels"),
            ("crit", with_header("crit", json!(["exp"])), "the token's header has `crit`, which is never accepted"),
            (
                "jku",
                with_header("jku", json!("https://evil.example/keys")),
                "the token's header has `jku`, which is never accepted",
            ),
            ("jwk", with_header("jwk", OTHER_RSA.jwk()), "the token's header has `jwk`, which is never accepted"),
            (
                "x5u",
                with_header("x5u", json!("https://evil.example/chain")),
                "the token's header has `x5u`, which is never accepted",
            ),
            ("x5c", with_header("x5c", json!(["AA"])), "the token's header has `x5c`, which is never accepted"),
            ("zip", with_header("zip", json!("DEF")), "the token's header has `zip`, which is never accepted"),
            ("b64", with_header("b64", json!(false)), "the token's header has `b64`, which is never accepted"),
            ("enc", with_header("enc", json!("A256GCM")), "the token's header has `enc`, which is never accepted"),
            ("no alg", RSA.token_of(r#"{"kid":"rsa"}"#, "{}"), "the token's header has no `alg`"),
            ("alg as a number", with_header("alg", json!(256)), "the token's header has no `alg`"),
            ("none", unsigned("none"), "the token is not signed (`alg` is `none`)"),
            ("none in capitals and small letters", unsigned("nOnE"), "the token is not signed (`alg` is `none`)"),
            (
                "HS256 with the public key as secret",
                hs256(),
                "the token's `alg` is symmetric (HMAC): who can check such a token can make one",
            ),
            ("an unknown alg", with_header("alg", json!("RS1")), "the token's `alg` is none that Weir knows"),
            ("alg in another case", with_header("alg", json!("rs256")), "the token's `alg` is none that Weir knows"),
            ("a DPoP proof", with_header("typ", json!("dpop+jwt")), "the token's `typ` is neither `JWT` nor `at+jwt`"),
            (
                "a logout token",
                with_header("typ", json!("logout+jwt")),
                "the token's `typ` is neither `JWT` nor `at+jwt`",
            ),
            ("typ as an array", with_header("typ", json!(["JWT"])), "the token's `typ` is neither `JWT` nor `at+jwt`"),
            (
                "no kid",
                RSA.token_of(r#"{"alg":"RS256"}"#, &good_claims().to_string()),
                "the token's header has no `kid`",
            ),
            ("kid as a number", with_header("kid", json!(1)), "the token's `kid` is not a string of 1 to 256 bytes"),
            ("an empty kid", with_header("kid", json!("")), "the token's `kid` is not a string of 1 to 256 bytes"),
            (
                "a long kid",
                with_header("kid", json!("k".repeat(257))),
                "the token's `kid` is not a string of 1 to 256 bytes",
            ),
            ("an unknown kid", named("nobody", &RSA, "RS256"), "the issuer has no key with the token's `kid`"),
            ("kid in another case", named("RSA", &RSA, "RS256"), "the issuer has no key with the token's `kid`"),
            ("a path as kid", named("../../dev/null", &RSA, "RS256"), "the issuer has no key with the token's `kid`"),
        ],
    );
}

#[test]
fn a_key_is_used_for_what_it_is_alone() {
    const UNFIT: &str = "the issuer's key with the token's `kid` cannot be used: ";
    let purpose = "it is not declared for signatures (`use`, `key_ops` or `alg`)";
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
            ("a weak modulus behind a zero", named("padded-weak", &RSA, "RS256"), "its parameters are malformed"),
            (
                "16384 bits of RSA",
                named("huge", &RSA, "RS256"),
                "its RSA modulus has 16384 bits; 2048 to 8192 are accepted",
            ),
            ("a published secret", named("symmetric", &RSA, "RS256"), "the set shows its private part"),
            ("a published private key", named("private", &RSA, "RS256"), "the set shows its private part"),
            ("kty=oct", named("oct-without-k", &RSA, "RS256"), "its type (`kty`) is none that Weir knows"),
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
            ("coordinates of another curve", named("p256-as-p384", &P256, "ES384"), "its parameters are malformed"),
            ("a curve for coins", named("secp256k1", &P256, "ES256"), "its curve (`crv`) is none that Weir knows"),
            ("PS256 with a key for RS256", named("rsa-with-alg", &RSA, "PS256"), "its `alg` is not the token's PS256"),
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
            ("a truncated signature", cut(255), "the token's signature has 255 bytes instead of 256"),
            ("a signature of one byte", cut(1), "the token's signature has 1 bytes instead of 256"),
            ("a longer signature", cut(257), "the token's signature has 257 bytes instead of 256"),
            ("an ECDSA signature in DER", es256_as_der(), "the token's signature has 70 bytes instead of 64"),
            ("an ECDSA signature of zeros", zeros(), wrong),
            ("other bytes", cut(256), wrong),
            ("another key under the same kid", named("rsa", &OTHER_RSA, "RS256"), wrong),
            ("another payload", spliced(), wrong),
            (
                "PS256 said, PKCS #1 made",
                {
                    let token = RSA.token("RS256", &good_claims());
                    let header = base64(json!({"alg": "PS256", "kid": "rsa"}).to_string().as_bytes());
                    let parts: Vec<_> = token.split('.').collect();
                    format!("{header}.{}.{}", parts[1], parts[2])
                },
                wrong,
            ),
            ("a key off its curve", named("off-curve", &P256, "ES256"), wrong),
        ],
    );
}
