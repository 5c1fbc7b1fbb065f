//! The times of what `instructions.rs` counts, for a person: `cargo bench -p podspan-dataplane --bench times`. They
//! depend on the machine and on what else it does; nothing is compared.

// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

#[path = "work/mod.rs"]
mod work;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use work::WORK;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for work in WORK {
        let mut group = criterion.benchmark_group(work.name);
        group.throughput(Throughput::Elements(work.packets as u64));
        group.bench_function("packets", |bencher| {
            let mut prepared = (work.prepare)();
            bencher.iter_custom(|rounds| {
                // What makes a round ready is not measured.
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    let mut round = prepared();
                    let start = Instant::now();
                    round();
                    took += start.elapsed();
                }
                took
            });
        });
        group.finish();
    }
    if !work::has_avx2() {
        println!("this processor has no AVX2: checksums and the cipher are slower than they could be");
    }
    criterion.final_summary();
}
