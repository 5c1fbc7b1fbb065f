//! The interface of the crate `ring` 0.17, as far as boringtun uses it, over [`podspan_aead`]. Whoever builds
//! the data plane without this workspace's `[patch.crates-io]` gets the crate itself, which does the same, slower.

/// Authenticated encryption.
pub mod aead {
    use podspan_aead::{Key, NONCE, TAG};

    use super::error::Unspecified;

    /// An algorithm.
    #[derive(Debug)]
    pub struct Algorithm(());

    /// ChaCha20-Poly1305 (RFC 8439).
    pub static CHACHA20_POLY1305: Algorithm = Algorithm(());

    /// A key that is not bound to a use yet.
    #[derive(Debug)]
    pub struct UnboundKey(Key);

    impl UnboundKey {
        /// Takes the bytes of a key.
        ///
        /// # Errors
        /// If there are not as many as the algorithm wants.
        pub fn new(_: &'static Algorithm, bytes: &[u8]) -> Result<Self, Unspecified> {
            Key::new(bytes).map(Self).map_err(|_| Unspecified)
        }
    }

    /// A key whose user sees to it that no nonce comes twice.
    #[derive(Debug)]
    pub struct LessSafeKey(Key);

    /// A nonce.
    #[derive(Debug)]
    pub struct Nonce([u8; NONCE]);

    impl Nonce {
        /// Takes a nonce that was not used with the key before.
        #[must_use]
        pub fn assume_unique_for_key(bytes: [u8; NONCE]) -> Self {
            Self(bytes)
        }
    }

    /// Associated data.
    #[derive(Clone, Copy, Debug)]
    pub struct Aad<A>(A);

    impl<A: AsRef<[u8]>> Aad<A> {
        /// Takes them.
        pub fn from(data: A) -> Self {
            Self(data)
        }
    }

    /// What proves that a message was not changed.
    #[derive(Clone, Copy, Debug)]
    pub struct Tag([u8; TAG]);

    impl AsRef<[u8]> for Tag {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl LessSafeKey {
        /// Binds the key.
        #[must_use]
        pub fn new(key: UnboundKey) -> Self {
            Self(key.0)
        }

        /// Encrypts in place.
        ///
        /// # Errors
        /// If there is more data than the algorithm takes.
        pub fn seal_in_place_separate_tag<A: AsRef<[u8]>>(
            &self,
            nonce: Nonce,
            aad: Aad<A>,
            in_out: &mut [u8],
        ) -> Result<Tag, Unspecified> {
            self.0.seal(nonce.0, aad.0.as_ref(), in_out).map(Tag).map_err(|_| Unspecified)
        }

        /// Decrypts what ends with its tag in place.
        ///
        /// # Errors
        /// If it was not sealed with this key, nonce and associated data.
        pub fn open_in_place<'a, A: AsRef<[u8]>>(
            &self,
            nonce: Nonce,
            aad: Aad<A>,
            in_out: &'a mut [u8],
        ) -> Result<&'a mut [u8], Unspecified> {
            self.0.open(nonce.0, aad.0.as_ref(), in_out).map_err(|_| Unspecified)
        }
    }
}

/// Comparing what is secret.
pub mod constant_time {
    use super::error::Unspecified;

    /// Whether both are the same, in a time that depends on their lengths only.
    ///
    /// # Errors
    /// If they are not.
    pub fn verify_slices_are_equal(a: &[u8], b: &[u8]) -> Result<(), Unspecified> {
        aws_lc_rs::constant_time::verify_slices_are_equal(a, b).map_err(|_| Unspecified)
    }
}

/// Errors.
pub mod error {
    /// Something was wrong; what, is not told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Unspecified;

    impl std::fmt::Display for Unspecified {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("ring::error::Unspecified")
        }
    }

    impl std::error::Error for Unspecified {}
}
