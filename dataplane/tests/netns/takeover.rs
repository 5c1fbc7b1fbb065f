//! One dataplane follows another under traffic: nothing is lost, whoever dies.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use podspan_dataplane::{Dataplane, LendError, Liveness, Offload, Settings, StartError};

use crate::world::{Namespace, Node, PATIENCE, ask, end, pair, settings, tcp, udp_echo};

/// What a sender of numbered packets has seen come back.
struct Ledger {
    sent: usize,
    lost: Vec<usize>,
    /// Came later than one that was sent after it.
    overtaken: usize,
    /// The longest time in which nothing came.
    gap: Duration,
}

/// Sends `per_second` numbered packets to an echo until told to stop.
struct Flow {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Ledger>,
}

impl Flow {
    fn start(from: &Namespace, to: SocketAddr, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = from.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let reader = socket.try_clone().unwrap();
            let reader = thread::spawn(move || {
                let (mut seen, mut highest, mut overtaken) = (Vec::new(), 0, 0);
                let (mut last, mut gap) = (None::<Instant>, Duration::ZERO);
                let mut bytes = [0; 8];
                while let Ok(8) = reader.recv(&mut bytes) {
                    let n = usize::from_le_bytes(bytes);
                    let now = Instant::now();
                    gap = gap.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                    overtaken += usize::from(n < highest);
                    highest = highest.max(n);
                    seen.resize(seen.len().max(n + 1), false);
                    seen[n] = true;
                }
                (seen, overtaken, gap)
            });
            let start = Instant::now();
            let mut sent = 0_usize;
            while !told.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as usize;
                while sent < due {
                    socket.send_to(&sent.to_le_bytes(), to).unwrap();
                    sent += 1;
                }
                thread::sleep(Duration::from_micros(300));
            }
            let (mut seen, overtaken, gap) = reader.join().unwrap();
            seen.resize(sent, false);
            let lost = seen.iter().enumerate().filter(|(_, seen)| !**seen).map(|(n, _)| n).collect();
            Ledger { sent, lost, overtaken, gap }
        });
        Self { stop, thread }
    }

    fn end(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Node `a` gets a second dataplane beside its own, which is returned.
fn begin(a: &mut Node, b: &Node) -> Dataplane {
    let lent = a.dataplane().lend().unwrap();
    let settings = settings(a.number, a.lanes, a.offload);
    let new = a.namespace.inside(move || Dataplane::start_beside(settings, lent)).join().unwrap().unwrap();
    let old = a.dataplane.replace(new).unwrap();
    a.set_table(b, &format!("192.0.2.{}", b.number), true);
    old
}

fn wait_for_sessions(a: &Node) {
    let deadline = Instant::now() + PATIENCE;
    while !a.dataplane().status().peers[0].lanes.iter().all(|lane| lane.established) {
        assert!(Instant::now() < deadline, "no session beside the old one");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A whole takeover, as the agent does it.
fn follow(a: &mut Node, b: &Node) {
    let old = begin(a, b);
    wait_for_sessions(a);
    assert!(old.cut());
    a.dataplane().read_tun();
    thread::sleep(Duration::from_millis(300));
    old.shutdown();
    a.dataplane().own();
}

/// These measure, and must not be in each other's way.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nothing_is_lost_over_three_takeovers(offload: Offload) {
    let _alone = alone();
    let (mut a, mut b) = pair(offload, (2, 2), 4, true);
    let (there, back): (SocketAddr, SocketAddr) =
        ("10.202.0.1:7".parse().unwrap(), "10.201.0.1:7".parse().unwrap());
    let echoes = [udp_echo(&b, there), udp_echo(&a, back)];
    ask(&a, there, 100);
    ask(&b, back, 100);
    wait_for_sessions(&a);
    wait_for_sessions(&b);
    let flows = [Flow::start(&a.namespace, there, 1000), Flow::start(&b.namespace, back, 1000)];
    for _ in 0..3 {
        follow(&mut a, &b);
        thread::sleep(Duration::from_millis(100));
        follow(&mut b, &a);
        thread::sleep(Duration::from_millis(100));
    }
    for (flow, from) in flows.into_iter().zip(["a", "b"]) {
        let ledger = flow.end();
        assert!(ledger.sent > 1000, "{}", ledger.sent);
        assert_eq!(ledger.lost, Vec::<usize>::new(), "of {} packets from {from}", ledger.sent);
        println!("{from}: {} sent, {} overtaken, gap {:?}", ledger.sent, ledger.overtaken, ledger.gap);
    }
    end(&a, there);
    end(&b, back);
    echoes.into_iter().for_each(|echo| echo.join().unwrap());
}

/// At full load packets are lost in queues, as always; connections make up for it and do not notice more.
fn connections_at_full_load_go_on(offload: Offload) {
    let _alone = alone();
    let (mut a, mut b) = pair(offload, (2, 2), 4, true);
    let ends = [&a, &b].map(|node| std::mem::ManuallyDrop::new(Namespace(node.namespace.0.clone())));
    let [from, to] = ends;
    let bulk = thread::spawn(move || tcp(&from, &to, "10.202.0.1:9".parse().unwrap(), 96 << 20, 2));
    let mut takeovers = 0;
    while !bulk.is_finished() {
        thread::sleep(Duration::from_millis(100));
        follow(&mut a, &b);
        follow(&mut b, &a);
        takeovers += 2;
    }
    let time = bulk.join().unwrap();
    assert!(takeovers > 1);
    println!("{takeovers} takeovers within {time:?}");
}

/// Runs a takeover up to the `step`th step, then has one of the two die. Traffic goes on within a second.
fn dies(offload: Offload, step: usize, old_dies: bool) {
    let (mut a, b) = pair(offload, (1, 2), 4, true);
    let there: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, there);
    ask(&a, there, 100);
    let flow = Flow::start(&a.namespace, there, 1000);
    thread::sleep(Duration::from_millis(100));
    let old = begin(&mut a, &b);
    if step > 0 {
        wait_for_sessions(&a);
    }
    if step > 1 {
        old.cut();
    }
    if step > 2 {
        thread::sleep(Duration::from_millis(100));
    }
    if old_dies {
        old.shutdown();
        a.dataplane().own();
    } else {
        let new = a.dataplane.replace(old).unwrap();
        new.shutdown();
        a.dataplane().take_back();
    }
    thread::sleep(Duration::from_millis(1500));
    let ledger = flow.end();
    assert!(ledger.gap < Duration::from_millis(1100), "step {step}: {:?}", ledger.gap);
    let last = ledger.lost.last().copied().unwrap_or(0);
    assert!(last + 400 < ledger.sent, "step {step}: of {} packets {last} was lost", ledger.sent);
    // The next takeover finds everything in order.
    follow(&mut a, &b);
    ask(&a, there, 100);
    end(&a, there);
    echo.join().unwrap();
}

fn whoever_dies_the_other_goes_on(offload: Offload) {
    let _alone = alone();
    for step in 0..4 {
        for old_dies in [false, true] {
            dies(offload, step, old_dies);
        }
    }
}

#[test]
fn who_is_followed_asks_peers_no_more_that_have_moved_and_does_not_take_them_for_dead() {
    let _alone = alone();
    let (mut a, b) = pair(Offload::ALL, (2, 2), 4, true);
    let there: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, there);
    ask(&a, there, 100);
    wait_for_sessions(&a);
    let flow = Flow::start(&a.namespace, there, 1000);
    thread::sleep(Duration::from_millis(300));
    let old = begin(&mut a, &b);
    wait_for_sessions(&a);
    assert!(old.cut());
    a.dataplane().read_tun();
    thread::sleep(Duration::from_millis(150));
    let probes = |node: &Dataplane| -> Vec<_> {
        let peers = node.status().peers;
        peers[0].lanes.iter().map(|lane| (lane.liveness, lane.probes_sent)).collect()
    };
    let before = probes(&old);
    assert!(before.iter().any(|&(_, sent)| sent > 0), "{before:?}");
    thread::sleep(Duration::from_millis(800));
    assert_eq!(probes(&old), before);
    // Whoever has everything back asks as ever.
    let new = a.dataplane.replace(old).unwrap();
    new.shutdown();
    a.dataplane().take_back();
    thread::sleep(Duration::from_millis(1500));
    let after = probes(a.dataplane());
    assert!(after.iter().all(|&(liveness, _)| liveness == Liveness::Healthy), "{after:?}");
    assert!(after.iter().zip(&before).any(|(after, before)| after.1 > before.1 + 5), "{after:?}");
    assert!(flow.end().gap < Duration::from_millis(1100));
    end(&a, there);
    echo.join().unwrap();
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_lent_twice() {
    let (mut a, b) = pair(Offload::ALL, (2, 1), 4, true);
    let there: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, there);
    ask(&a, there, 100);
    let refused = |change: fn(&mut Settings)| {
        let lent = a.dataplane().lend().unwrap();
        assert!(matches!(a.dataplane().lend(), Err(LendError::Busy)));
        let mut settings = settings(1, 2, Offload::ALL);
        change(&mut settings);
        let error = a.namespace.inside(move || Dataplane::start_beside(settings, lent)).join().unwrap();
        a.dataplane().take_back();
        error.unwrap_err()
    };
    assert!(matches!(refused(|s| s.lanes.truncate(1)), StartError::OtherLanes { lent: 2, own: 1 }));
    assert!(refused(|s| s.port += 1).to_string().contains("another port"));
    assert!(refused(|s| s.interface = "other".into()).to_string().contains("podspan0, not of other"));
    ask(&a, there, 100);
    follow(&mut a, &b);
    ask(&a, there, 100);
    end(&a, there);
    echo.join().unwrap();
}

/// The tests with all offloads and with none: what is relayed is many datagrams in one, or one.
macro_rules! with_offloads {
    ($($module:ident: $offload:expr;)*) => {
        $(mod $module {
            use super::Offload;

            #[test]
            fn nothing_is_lost_over_three_takeovers() {
                super::nothing_is_lost_over_three_takeovers($offload);
            }

            #[test]
            fn connections_at_full_load_go_on() {
                super::connections_at_full_load_go_on($offload);
            }

            #[test]
            fn whoever_dies_the_other_goes_on() {
                super::whoever_dies_the_other_goes_on($offload);
            }
        })*
    };
}

with_offloads! {
    no_offload: Offload::NONE;
    all_offloads: Offload::ALL;
}
