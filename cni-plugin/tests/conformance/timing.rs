//! What an ADD costs with the agent up. The bound is the issue's own: 10 ms; it is held to with the test
//! build too, whose own code is not optimised.

use std::time::Duration;

use crate::fake_agent::FakeAgent;
use crate::namespace::Pod;
use crate::plugin::Call;

const BOUND: Duration = Duration::from_millis(10);

#[test]
fn an_add_costs_less_than_10_ms_with_the_agent_up() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent).key("timeoutMs", "10000");
    // The other tests run beside this one on few cores: the best of up to eight rounds is
    // nearest to the plugin's own cost.
    let mut best = Duration::MAX;
    for _ in 0..8 {
        let mut took: Vec<Duration> = (0..60)
            .map(|_| {
                let output = call.run("ADD");
                output.succeeded();
                call.run("DEL").succeeded_silently();
                output.took
            })
            .skip(10)
            .collect();
        took.sort_unstable();
        println!(
            "ADD: median {:?}, 90th percentile {:?} of {}",
            took[took.len() / 2],
            took[took.len() * 9 / 10],
            took.len()
        );
        best = best.min(took[took.len() / 2]);
        if best < BOUND {
            break;
        }
    }
    assert!(best < BOUND, "the median ADD took {best:?}");
}
