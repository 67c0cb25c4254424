//! Tokens that are well signed, and whose claims must be refused, each for its own reason.

use std::time::Duration;

use gateway_daemon::identity::token::MAX_GROUPS;
use serde_json::{Value, json};

use crate::tokens::{
    self, ISSUER, NOW, NOW_AS_FRACTION, claims_and, claims_without_and, good_claims, nested, refused, rules, verify,
    with_claim, with_header, with_payload_text,
};

#[test]
fn claims_are_read_one_way_only() {
    let issuer = "the token's `iss` is not exactly `https://idp.example/realms/corp`";
    let audience = "the token's `aud` does not name `weir`";
    refused(
        &rules(|_| {}),
        [
            ("a payload that is no JSON", with_payload_text("{"), "the token's payload is not JSON"),
            ("a string as payload", with_payload_text("\"x\""), "the token's payload is not a JSON object"),
            ("two payloads", with_payload_text(&format!("{0}{0}", good_claims())), "the token's payload is not JSON"),
            ("iss twice", claims_and(r#""iss":"https://evil.example""#), "the token's payload names a key twice"),
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
            ("deep nesting", with_claim("x", nested(16)), "the token's payload is nested deeper than 16 levels"),
            ("no iss", with_claim("iss", Value::Null), "the token has no `iss`"),
            (
                "iss as an array",
                with_claim("iss", json!(["https://evil.example", ISSUER])),
                "the token's `iss` is not a string",
            ),
            ("another iss", with_claim("iss", json!("https://evil.example")), issuer),
            ("iss with a slash more", with_claim("iss", json!(format!("{ISSUER}/"))), issuer),
            ("iss in another case", with_claim("iss", json!("https://IDP.example/realms/corp")), issuer),
            ("iss with a prefix that fits", with_claim("iss", json!(format!("{ISSUER}.evil.example"))), issuer),
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
            ("sub as an array", with_claim("sub", json!(["agent-7"])), "the token's `sub` is not a string"),
            ("sub as a number", with_claim("sub", json!(7)), "the token's `sub` is not a string"),
            ("an empty sub", with_claim("sub", json!("")), "the token's `sub` is empty"),
            ("a long sub", with_claim("sub", json!("s".repeat(256))), "the token's `sub` is longer than 255 bytes"),
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
            ("a long jti", with_claim("jti", json!("j".repeat(257))), "the token's `jti` is longer than 256 bytes"),
            ("act as a string", with_claim("act", json!("root")), "the token's `act` is not an object"),
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
            ("exp as null", claims_without_and("exp", r#""exp":null"#), "the token's `exp` is not a number"),
            ("exp as a string", with_claim("exp", json!("1900000000")), "the token's `exp` is not a number"),
            ("exp as true", with_claim("exp", json!(true)), "the token's `exp` is not a number"),
            ("a negative exp", with_claim("exp", json!(-1)), &*range("exp")),
            ("a huge exp", with_claim("exp", json!(u64::MAX)), &*range("exp")),
            ("an exp in milliseconds", with_claim("exp", json!((NOW + 600) * 1000)), &*range("exp")),
            ("an exp of 1e300", claims_without_and("exp", r#""exp":1e300"#), &*range("exp")),
            (
                "an exp that no number holds",
                claims_without_and("exp", r#""exp":1e999"#),
                "the token's payload is not JSON",
            ),
            ("expired", with_claim("exp", json!(NOW - 5)), "the token has expired 5 seconds ago"),
            ("expired this second", with_claim("exp", json!(NOW)), "the token has expired 0 seconds ago"),
            (
                "expired by a fraction",
                with_claim("exp", json!(NOW_AS_FRACTION - 0.5)),
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
            ("iat as an array", with_claim("iat", json!([NOW])), "the token's `iat` is not a number"),
        ],
    );
    for (what, name, value) in [
        ("exp in the next second", "exp", json!(NOW + 1)),
        ("exp in half a second", "exp", json!(NOW_AS_FRACTION + 0.5)),
        ("exp a day behind iat", "exp", json!(NOW + 86_399)),
        ("nbf within the leeway", "nbf", json!(NOW + 60)),
        ("iat within the leeway", "iat", json!(NOW_AS_FRACTION + 59.5)),
        ("no nbf", "nbf", Value::Null),
        ("no iat", "iat", Value::Null),
    ] {
        verify(&with_claim(name, value), &rules(|_| {})).unwrap_or_else(|error| panic!("{what}: {error}"));
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
    let name =
        "a group below `/groups` in the token is empty, longer than 256 bytes, or has control or invisible characters";
    refused(
        &rules(|_| {}),
        [
            ("Entra's overage", with_claim("_claim_names", json!({"groups": "src1"})), &*overage("_claim_names")),
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
            ("too many groups", with_claim("groups", json!(many)), "the token has more than 500 groups"),
        ],
    );
}

#[test]
fn an_issuers_own_limits_of_age_and_life_bind() {
    let hour = Duration::from_secs(3600);
    let aged = rules(|settings| settings.max_age = Some(hour));
    refused(
        &aged,
        [
            ("no iat", with_claim("iat", Value::Null), "the token has no `iat`"),
            (
                "an hour old",
                with_claim("iat", json!(NOW - 3600)),
                "the token was issued 3600 seconds ago, over 3600 (`max_age` of this issuer)",
            ),
            (
                "issued in 1970",
                with_claim("iat", json!(0)),
                "the token was made to live for longer than 86400 seconds (`max_lifetime` of this issuer)",
            ),
        ],
    );
    refused(
        &rules(|settings| settings.max_lifetime = Duration::from_secs(600)),
        [
            (
                "made for a second more",
                with_claim("iat", json!(NOW - 1)),
                "the token was made to live for longer than 600 seconds (`max_lifetime` of this issuer)",
            ),
            (
                "a second more from now",
                with_claim("exp", json!(NOW + 601)),
                "the token is valid for longer than 600 seconds from now (`max_lifetime` of this issuer)",
            ),
        ],
    );
    // The identity ends with the token's age, before its `exp`.
    let verified = verify(&with_claim("iat", json!(NOW - 3590)), &aged).expect("young enough");
    let identity = verified.into_identity("claude".into(), None).expect("any subject");
    assert_eq!(identity.expires, tokens::now() + Duration::from_secs(10));
}

#[test]
fn an_issuers_own_types_and_parties_bind() {
    let typed = rules(|settings| settings.types = vec!["at+jwt".into()]);
    let other_type = "the token's `typ` is none of `at+jwt` (`types` of this issuer)";
    refused(
        &typed,
        [
            ("a plain JWT", with_header("typ", json!("JWT")), other_type),
            ("an ID token's logout", with_header("typ", json!("logout+jwt")), other_type),
            ("no typ", with_payload_text(&good_claims().to_string()), other_type),
            ("typ as an array", with_header("typ", json!(["at+jwt"])), other_type),
        ],
    );
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt"] {
        verify(&with_header("typ", json!(typ)), &typed).unwrap_or_else(|error| panic!("{typ}: {error}"));
    }
    let party = rules(|settings| settings.authorized_parties = vec!["weir-cli".into(), "ci".into()]);
    let other_party = "the token's `azp` is none of `weir-cli`, `ci` (`authorized_parties` of this issuer)";
    refused(
        &party,
        [
            ("no azp", with_claim("azp", Value::Null), "the token has no `azp`"),
            ("another azp", with_claim("azp", json!("billing")), other_party),
            ("azp in another case", with_claim("azp", json!("CI")), other_party),
            ("azp as an array", with_claim("azp", json!(["ci"])), "the token's `azp` is not a string"),
        ],
    );
    verify(&with_claim("azp", json!("ci")), &party).expect("a party that is named");
}
