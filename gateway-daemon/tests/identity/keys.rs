//! Keys made for the tests, and tokens signed with them, well-formed or not.

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair, RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub(crate) static RSA: LazyLock<Key> = LazyLock::new(|| Key::rsa("rsa"));
/// Another key, for forgeries under the first one's name.
pub(crate) static OTHER_RSA: LazyLock<Key> = LazyLock::new(|| Key::rsa("other-rsa"));
pub(crate) static P256: LazyLock<Key> = LazyLock::new(|| {
    Key::new("p256", Pair::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key")))
});
pub(crate) static P384: LazyLock<Key> = LazyLock::new(|| {
    Key::new("p384", Pair::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key")))
});
pub(crate) static ED25519: LazyLock<Key> =
    LazyLock::new(|| Key::new("ed", Pair::Ed25519(Ed25519KeyPair::generate().expect("a key"))));

pub(crate) struct Key {
    pub(crate) kid: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    fn new(kid: &str, pair: Pair) -> Self {
        Self { kid: kid.to_owned(), pair }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        Self::new(kid, Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")))
    }

    /// The public key, as providers publish it.
    pub(crate) fn jwk(&self) -> Value {
        let kid = &self.kid;
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": kid, "use": "sig", "n": base64(&public.n), "e": base64(&public.e)})
            }
            Pair::P256(pair) => ec_jwk(kid, "P-256", pair),
            Pair::P384(pair) => ec_jwk(kid, "P-384", pair),
            Pair::Ed25519(pair) => {
                let x = base64(pair.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "key_ops": ["verify"], "x": x})
            }
        }
    }

    /// The public key as DER: what HS256 forgers use as a secret.
    pub(crate) fn public_der(&self) -> Vec<u8> {
        let Pair::Rsa(pair) = &self.pair else { panic!("an RSA key") };
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
            aws_lc_rs::encoding::AsDer::as_der(pair.public_key()).expect("DER");
        der.as_ref().to_vec()
    }

    fn sign(&self, pss: Padding, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding = match pss {
                    Padding::Pkcs1 => &RSA_PKCS1_SHA256,
                    Padding::Pss => &RSA_PSS_SHA256,
                };
                pair.sign(padding, &random, message, &mut signature).expect("a signature");
                signature
            }
            Pair::P256(pair) | Pair::P384(pair) => pair.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of exactly these two texts.
    pub(crate) fn token_of(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", base64(header.as_bytes()), base64(payload.as_bytes()));
        let padding = if header.contains("PS256") { Padding::Pss } else { Padding::Pkcs1 };
        let signature = base64(&self.sign(padding, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// A token with this key's `kid` and `alg`.
    pub(crate) fn token(&self, alg: &str, payload: &Value) -> String {
        self.token_of(&json!({"alg": alg, "kid": self.kid, "typ": "JWT"}).to_string(), &payload.to_string())
    }
}

enum Padding {
    Pkcs1,
    Pss,
}

fn ec_jwk(kid: &str, curve: &str, pair: &EcdsaKeyPair) -> Value {
    // SEC 1 section 2.3.3: 4, x, y.
    let point = pair.public_key().as_ref();
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    json!({"kty": "EC", "crv": curve, "kid": kid, "use": "sig", "x": base64(x), "y": base64(y)})
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
