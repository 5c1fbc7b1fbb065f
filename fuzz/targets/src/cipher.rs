//! The cipher of data packets: the implementation by AVX-512 against aws-lc.

use podspan_aead::{Implementation, KEY, Key, NONCE, TAG};

/// The input: the message's length (2 bytes), the length of what is associated with it, which bit of what was sealed is
/// turned (4 bytes), key, nonce, and then bytes that make up the message, again and again if they are too few: messages are
/// longer than any packet. On a processor without AVX-512 aws-lc is compared with itself.
pub fn cipher(data: &[u8]) {
    let Some((head, data)) = data.split_first_chunk::<7>() else { return };
    let Some((key, data)) = data.split_first_chunk::<KEY>() else { return };
    let Some((nonce, data)) = data.split_first_chunk::<NONCE>() else { return };
    let [low, high, associated, turned @ ..] = *head;
    let length = usize::from(u16::from_le_bytes([low, high]));
    let mut bytes = data.iter().copied().chain(std::iter::once(0)).cycle();
    let associated: Vec<u8> = bytes.by_ref().take(usize::from(associated)).collect();
    let message: Vec<u8> = bytes.take(length).collect();

    let with = |implementation| match Key::with(implementation, key) {
        Ok(key) => key,
        Err(refused) => panic!("a key of {KEY} bytes is refused: {refused:?}"),
    };
    let (ours, reference) = (with(Implementation::best()), with(Implementation::AwsLc));
    let seal = |key: &Key| {
        let mut sealed = message.clone();
        match key.seal(*nonce, &associated, &mut sealed) {
            Ok(tag) => sealed.extend(tag),
            Err(refused) => panic!("{length} bytes cannot be sealed: {refused:?}"),
        }
        sealed
    };
    let sealed = seal(&ours);
    assert_eq!(sealed, seal(&reference), "{length} bytes are sealed differently");
    for key in [&ours, &reference] {
        assert_eq!(key.open(*nonce, &associated, &mut sealed.clone()).as_deref(), Ok(&message[..]));
    }
    // Whatever is not what was sealed is refused.
    let bit = u32::from_le_bytes(turned) as usize % (sealed.len() * 8);
    let mut forged = sealed.clone();
    forged[bit / 8] ^= 1 << (bit % 8);
    assert!(ours.open(*nonce, &associated, &mut forged).is_err(), "bit {bit} of {length} bytes");
    let short = &mut sealed.clone()[..bit / 8];
    assert!(ours.open(*nonce, &associated, short).is_err(), "{} of {} bytes", bit / 8, length + TAG);
}
