//! Tokens and key sets.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::identity::token::{
    Algorithm, KeySet, MAX_KEYS, MAX_SUBJECT_LEN, TokenRules, TokenSettings, Unverified, Verified,
};

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "weir";
/// When tokens are looked at, in seconds since 1970.
const NOW: u64 = 1_700_000_000;

/// An issuer whose key signs whatever the fuzzer says.
struct Issuer {
    pair: Ed25519KeyPair,
    keys: KeySet,
    rules: TokenRules,
}

static ISSUER_WITH_KEY: LazyLock<Option<Issuer>> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).ok()?;
    let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key());
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "k", "x": x}]});
    let keys = KeySet::parse(set.to_string().as_bytes()).ok()?;
    let mut settings = TokenSettings::new("test", ISSUER, AUDIENCE);
    settings.algorithms = vec![Algorithm::EdDsa];
    Some(Issuer { pair, keys, rules: TokenRules::new(settings).ok()? })
});

impl Issuer {
    fn verify(&self, token: String) -> Option<Verified> {
        let secret = SecretString::from(token);
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        Unverified::parse(&secret, &self.rules).ok()?.verify(&self.rules, &self.keys, now).ok()
    }
}

/// A header and claims (parted by the first line break), signed; and the same bytes as a token by themselves.
pub fn token(data: &[u8]) {
    let Some(issuer) = ISSUER_WITH_KEY.as_ref() else { unreachable!("the issuer's key and rules hold") };
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(issuer.verify(text.to_owned()).is_none(), "a token passes that nobody signed");
    }
    let at = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (header, claims) = data.split_at_checked(at).unwrap_or_default();
    let claims = claims.get(1..).unwrap_or_default();
    let signed = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = issuer.pair.sign(signed.as_bytes());
    let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()));
    let Some(verified) = issuer.verify(token.clone()) else { return };
    says_what_it_must(header, claims, &verified);
    let mut forged = signature.as_ref().to_vec();
    if let Some(byte) = forged.get_mut(data.len() % 64) {
        *byte ^= 1;
    }
    assert!(issuer.verify(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(forged))).is_none());
    assert!(issuer.verify(format!("{token}=")).is_none() && issuer.verify(format!("{token}.")).is_none());
}

/// An accepted token by another reader of JSON.
fn says_what_it_must(header: &[u8], claims: &[u8], verified: &Verified) {
    let (Ok(header), Ok(claims)) = (serde_json::from_slice::<Value>(header), serde_json::from_slice::<Value>(claims))
    else {
        unreachable!("what was accepted is JSON")
    };
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    assert_eq!((text(&header, "alg").as_str(), text(&header, "kid").as_str()), ("EdDSA", "k"));
    assert_eq!(text(&claims, "iss"), ISSUER);
    let audience = claims.get("aud").cloned().unwrap_or_default();
    let ours = Value::from(AUDIENCE);
    assert!(audience == ours || audience.as_array().is_some_and(|all| all.contains(&ours)));
    assert!(claims.get("exp").and_then(Value::as_f64).is_some_and(|exp| exp > 1_700_000_000.0));
    let subject = text(&claims, "sub");
    assert!((1..=MAX_SUBJECT_LEN).contains(&subject.len()));
    assert_eq!((&*verified.subject().subject, &*verified.subject().issuer), (subject.as_str(), ISSUER));
}

/// An issuer's key set: bounded, and never more keys than it has.
pub fn keys(data: &[u8]) {
    let Ok(keys) = KeySet::parse(data) else { return };
    assert!(keys.len() <= MAX_KEYS);
    let count = serde_json::from_slice::<Value>(data).ok().and_then(|set| Some(set.get("keys")?.as_array()?.len()));
    assert!(count.is_some_and(|count| keys.len() <= count));
    let header = json!({"alg": "EdDSA", "kid": "k"}).to_string();
    let Some(issuer) = ISSUER_WITH_KEY.as_ref() else { return };
    let token =
        [header.as_str(), "{}", "00000000000000000000000000000000"].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let secret = SecretString::from(token.join("."));
    if let Ok(unverified) = Unverified::parse(&secret, &issuer.rules) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        assert!(unverified.verify(&issuer.rules, &keys, now).is_err(), "a key takes a signature that nobody made");
    }
}
