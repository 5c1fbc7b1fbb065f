//! Every implementation that this processor has, against RFC 8439 and against aws-lc.

// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

use podspan_aead::{Implementation, Key, Refused, TAG};
use proptest::prelude::*;

/// What there is to be tested: aws-lc everywhere, and the other where `/proc/cpuinfo` says that it must work.
fn implementations() -> Vec<Implementation> {
    let mut all = vec![Implementation::AwsLc];
    if Implementation::best() == Implementation::Wide {
        all.push(Implementation::Wide);
    }
    all
}

#[test]
fn a_processor_that_can_is_used() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags: Vec<&str> = info.lines().find(|l| l.starts_with("flags")).unwrap_or("").split(' ').collect();
    let can = ["avx512f", "avx512bw", "avx512vl", "avx512ifma"].iter().all(|f| flags.contains(f));
    assert_eq!(Implementation::best() == Implementation::Wide, can, "it failed its own test");
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

/// RFC 8439 section 2.8.2; it has associated data.
#[test]
fn the_example_of_rfc_8439() {
    let key: Vec<u8> = (0x80..0xa0).collect();
    let nonce: [u8; 12] = hex("07000000 40414243 44454647").try_into().unwrap();
    let associated = hex("50515253c0c1c2c3c4c5c6c7");
    let text =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
        sunscreen would be it.";
    for implementation in implementations() {
        let key = Key::with(implementation, &key).unwrap();
        let mut data = text.to_vec();
        let tag = key.seal(nonce, &associated, &mut data).unwrap();
        assert_eq!(data[..16], hex("d31a8d34648e60db7b86afbc53ef7ec2"));
        assert_eq!(tag.to_vec(), hex("1ae10b594f09e26a7e902ecbd0600691"));
        data.extend(tag);
        assert_eq!(key.open(nonce, &associated, &mut data).unwrap(), text);
    }
}

/// Without associated data, as the packets of WireGuard are.
#[test]
fn every_length_agrees_with_aws_lc() {
    let bytes: Vec<u8> = (0..32).map(|i| i * 7 + 1).collect();
    let reference = Key::with(Implementation::AwsLc, &bytes).unwrap();
    for implementation in implementations() {
        let key = Key::with(implementation, &bytes).unwrap();
        // Those around every border of blocks, groups and passes; what a datagram and a packet hold at most.
        for length in (0..4200).chain([8192, 9000, 65_507, 65_519, 65_535, 65_536, 200_000]) {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&(length as u64).to_le_bytes());
            let plain: Vec<u8> = (0..length).map(|i| (i * 31 + length) as u8).collect();
            let (mut ours, mut theirs) = (plain.clone(), plain.clone());
            let tag = key.seal(nonce, &[], &mut ours).unwrap();
            let expected = reference.seal(nonce, &[], &mut theirs).unwrap();
            assert!(tag == expected && ours == theirs, "{implementation:?}, {length} bytes");
            ours.extend(tag);
            assert_eq!(key.open(nonce, &[], &mut ours).unwrap(), plain, "{implementation:?}");
        }
    }
}

/// Numbers near the modulus and full of ones, where carries are: all keys and texts of `ff` and `00` bytes.
#[test]
fn carries_are_not_lost() {
    for implementation in implementations() {
        for (i, fill) in [0xff, 0x00, 0xfe, 0x7f].into_iter().enumerate() {
            for length in (0..600).chain(1400..1440) {
                let key = [fill; 32];
                let nonce = [i as u8; 12];
                let (mut ours, mut theirs) = (vec![!fill; length], vec![!fill; length]);
                let reference = Key::with(Implementation::AwsLc, &key).unwrap();
                // Ciphertext of ones only: what is sealed is the key stream's complement.
                let mut stream = vec![0; length];
                reference.seal(nonce, &[], &mut stream).unwrap();
                for (byte, key) in ours.iter_mut().zip(&stream) {
                    *byte = !key;
                }
                theirs.copy_from_slice(&ours);
                let tag = Key::with(implementation, &key).unwrap().seal(nonce, &[], &mut ours).unwrap();
                assert_eq!(tag, reference.seal(nonce, &[], &mut theirs).unwrap(), "{length} bytes");
                assert!(ours.iter().all(|&byte| byte == 0xff));
            }
        }
    }
}

/// Nonces and keys at their ends: the counter's word is not theirs, and nothing of one spills into the other.
#[test]
fn the_ends_of_keys_and_nonces_agree_with_aws_lc() {
    for implementation in implementations() {
        for (key, nonce) in [(0x00, 0x00), (0x00, 0xff), (0xff, 0x00), (0xff, 0xff), (0x80, 0x7f)] {
            let (bytes, nonce) = ([key; 32], [nonce; 12]);
            let ours = Key::with(implementation, &bytes).unwrap();
            let reference = Key::with(Implementation::AwsLc, &bytes).unwrap();
            for length in [0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 1472, 1473, 65_535]
            {
                for associated in [0, 1, 15, 16, 17, 64] {
                    let associated = vec![0xff; associated];
                    let (mut a, mut b) = (vec![0x55; length], vec![0x55; length]);
                    let tag = ours.seal(nonce, &associated, &mut a).unwrap();
                    assert_eq!(tag, reference.seal(nonce, &associated, &mut b).unwrap(), "{length} bytes");
                    assert!(a == b, "{implementation:?}, {length} bytes");
                    a.extend(tag);
                    assert!(reference.open(nonce, &associated, &mut a.clone()).is_ok());
                    assert!(ours.open(nonce, &associated, &mut a).unwrap().iter().all(|&b| b == 0x55));
                }
            }
        }
    }
}

#[test]
fn whatever_was_changed_is_refused() {
    for implementation in implementations() {
        let key = Key::with(implementation, &[3; 32]).unwrap();
        for length in [0, 1, 100, 1420, 3000] {
            let mut sealed = vec![5; length];
            let tag = key.seal([1; 12], &[], &mut sealed).unwrap();
            sealed.extend(tag);
            for at in (0..sealed.len()).step_by(sealed.len().div_ceil(40)).chain(length..length + TAG) {
                for bit in [0, 7] {
                    let mut changed = sealed.clone();
                    changed[at] ^= 1 << bit;
                    assert_eq!(key.open([1; 12], &[], &mut changed), Err(Refused), "byte {at} of {length}");
                }
            }
            assert_eq!(key.open([2; 12], &[], &mut sealed.clone()), Err(Refused));
            assert_eq!(key.open([1; 12], &[0], &mut sealed.clone()), Err(Refused));
            for short in 0..sealed.len().min(40) {
                assert_eq!(key.open([1; 12], &[], &mut sealed[..short].to_vec()), Err(Refused));
            }
        }
        assert_eq!(Key::with(implementation, &[0; 31]).unwrap_err(), Refused);
    }
}

proptest! {
    #[test]
    fn anything_agrees_with_aws_lc(
        key: [u8; 32],
        nonce: [u8; 12],
        associated in prop::collection::vec(any::<u8>(), 0..40),
        with_associated: bool,
        plain in prop::collection::vec(any::<u8>(), 0..3200),
    ) {
        let associated = if with_associated { associated } else { Vec::new() };
        let reference = Key::with(Implementation::AwsLc, &key).unwrap();
        let mut expected = plain.clone();
        let tag = reference.seal(nonce, &associated, &mut expected).unwrap();
        for implementation in implementations() {
            let key = Key::with(implementation, &key).unwrap();
            let mut sealed = plain.clone();
            prop_assert_eq!(key.seal(nonce, &associated, &mut sealed).unwrap(), tag);
            prop_assert_eq!(&sealed, &expected);
            sealed.extend(tag);
            prop_assert_eq!(key.open(nonce, &associated, &mut sealed).unwrap(), &plain[..]);
        }
    }
}
