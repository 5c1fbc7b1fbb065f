//! Whether `wide` does on this very processor what it did where it was written: an instruction that is emulated wrongly, or a
//! processor that computes wrongly, must not garble or leak what is sealed.

use aws_lc_rs::aead::LessSafeKey;
use tracing::error;
use zeroize::Zeroize as _;

use crate::{Implementation, KEY, NONCE, Refused, TAG, aws_lc, seal, wide};

/// The longest message that is tried, bytes.
const LONGEST: usize = 1473;
/// A few lengths around each border of `wide`.
const LENGTHS: [usize; 16] = [0, 1, 15, 16, 63, 65, 112, 129, 192, 193, 448, 449, 960, 961, 1420, LONGEST];

/// What is tried: as [`wide::Cipher`], without state.
pub(crate) struct Candidate<S, O> {
    /// Encrypts in place; returns the tag.
    seal: S,
    /// Decrypts in place if the tag is right.
    open: O,
}

/// Which implementation is used where `wide` is `supported` and the test has this result.
pub(crate) fn choose(supported: bool, test: impl FnOnce() -> bool) -> Implementation {
    if !supported {
        return Implementation::AwsLc;
    }
    if !test() {
        error!(
            "this processor has AVX-512, but computes ChaCha20-Poly1305 wrongly with it; packets are sealed with aws-lc, \
             which is slower. The processor or the hypervisor is broken: move the node to another machine"
        );
        return Implementation::AwsLc;
    }
    Implementation::Wide
}

/// The test itself, of `wide`. Some 50 us.
pub(crate) fn wide() -> bool {
    agrees(Candidate {
        seal: |key: &[u8; KEY], nonce, data: &mut [u8]| wide::Cipher::new(key)?.seal(nonce, data),
        open: |key: &[u8; KEY], nonce, data: &mut [u8], tag: &[u8; TAG]| {
            wide::Cipher::new(key)?.open(nonce, data, tag)
        },
    })
}

/// Whether the candidate gives what aws-lc gives: all lengths, both ways, and a tag that is wrong.
fn agrees<S, O>(candidate: Candidate<S, O>) -> bool
where
    S: Fn(&[u8; KEY], [u8; NONCE], &mut [u8]) -> Result<[u8; TAG], Refused>,
    O: Fn(&[u8; KEY], [u8; NONCE], &mut [u8], &[u8; TAG]) -> Result<(), Refused>,
{
    let mut key = [0_u8; KEY];
    let mut nonce = [0_u8; NONCE];
    let ok = LENGTHS.iter().enumerate().all(|(i, &length)| {
        key.iter_mut().enumerate().for_each(|(j, b)| *b = (i * 37 + j * 101 + 7) as u8);
        nonce.iter_mut().enumerate().for_each(|(j, b)| *b = (i * 59 + j * 17) as u8);
        let reference: Result<LessSafeKey, Refused> = aws_lc(&key);
        // Carries that a random message would never bring about come with the largest of all words.
        let fill = if i % 2 == 0 { 0xff } else { i as u8 };
        let (mut ours, mut theirs) = ([fill; LONGEST], [fill; LONGEST]);
        let (ours, theirs) = (&mut ours[..length], &mut theirs[..length]);
        let expected = reference.and_then(|reference| seal(&reference, nonce, &[], theirs));
        let (Ok(tag), Ok(expected)) = ((candidate.seal)(&key, nonce, ours), expected) else {
            return false;
        };
        let mut wrong = tag;
        wrong[i] ^= 1;
        tag == expected
            && ours == theirs
            && (candidate.open)(&key, nonce, ours, &wrong).is_err()
            && (candidate.open)(&key, nonce, ours, &tag).is_ok()
            && ours.iter().all(|&b| b == fill)
    });
    key.zeroize();
    ok
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, open};

    fn right_seal(key: &[u8; KEY], nonce: [u8; NONCE], data: &mut [u8]) -> Result<[u8; TAG], Refused> {
        seal(&aws_lc(key)?, nonce, &[], data)
    }

    fn right_open(
        key: &[u8; KEY],
        nonce: [u8; NONCE],
        data: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), Refused> {
        let mut sealed = [&*data, tag].concat();
        data.copy_from_slice(open(&aws_lc(key)?, nonce, &[], &mut sealed)?);
        Ok(())
    }

    #[test]
    fn what_is_right_passes() {
        assert!(agrees(Candidate { seal: right_seal, open: right_open }));
    }

    /// One bit, of one message, is enough.
    #[test]
    fn whatever_is_wrong_is_found() {
        for length in LENGTHS {
            let wrong_tag = |key: &[u8; KEY], nonce, data: &mut [u8]| {
                let mut tag = right_seal(key, nonce, data)?;
                tag[15] ^= if data.len() == length { 0x80 } else { 0 };
                Ok(tag)
            };
            assert!(!agrees(Candidate { seal: wrong_tag, open: right_open }), "the tag of {length} bytes");
            let refuses = |key: &[u8; KEY], nonce, data: &mut [u8]| {
                if data.len() == length { Err(Refused) } else { right_seal(key, nonce, data) }
            };
            assert!(!agrees(Candidate { seal: refuses, open: right_open }), "sealing {length} bytes");
            let opens_nothing = |key: &[u8; KEY], nonce, data: &mut [u8], tag: &[u8; TAG]| {
                if data.len() == length { Err(Refused) } else { right_open(key, nonce, data, tag) }
            };
            assert!(!agrees(Candidate { seal: right_seal, open: opens_nothing }), "opening {length} bytes");
            // The worst: it takes what was forged.
            let opens_all = |key: &[u8; KEY], nonce, data: &mut [u8], tag: &[u8; TAG]| {
                let result = right_open(key, nonce, data, tag);
                if data.len() == length { Ok(()) } else { result }
            };
            assert!(!agrees(Candidate { seal: right_seal, open: opens_all }), "a forgery of {length} bytes");
            if length == 0 {
                continue;
            }
            let wrong_text = |key: &[u8; KEY], nonce, data: &mut [u8]| {
                let tag = right_seal(key, nonce, data)?;
                if data.len() == length {
                    data[length - 1] ^= 1;
                }
                Ok(tag)
            };
            assert!(!agrees(Candidate { seal: wrong_text, open: right_open }), "the text of {length} bytes");
            let garbles = |key: &[u8; KEY], nonce, data: &mut [u8], tag: &[u8; TAG]| {
                right_open(key, nonce, data, tag)?;
                if data.len() == length {
                    data[0] ^= 1;
                }
                Ok(())
            };
            assert!(!agrees(Candidate { seal: right_seal, open: garbles }), "what {length} bytes open to");
        }
    }

    #[test]
    fn who_fails_the_test_gets_aws_lc_and_works() {
        assert_eq!(choose(true, || true), Implementation::Wide);
        assert_eq!(choose(true, || false), Implementation::AwsLc);
        // What the processor does not have is not tried.
        assert_eq!(choose(false, || panic!("it was tried")), Implementation::AwsLc);
        let key = Key::with(choose(true, || false), &[1; KEY]).unwrap();
        let mut data = *b"through the other cipher";
        let tag = key.seal([2; NONCE], &[], &mut data).unwrap();
        let mut sealed = [&data[..], &tag].concat();
        assert_eq!(key.open([2; NONCE], &[], &mut sealed).unwrap(), b"through the other cipher");
    }
}
