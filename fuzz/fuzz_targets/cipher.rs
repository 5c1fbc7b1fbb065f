#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podspan_fuzz_targets::cipher(data));
