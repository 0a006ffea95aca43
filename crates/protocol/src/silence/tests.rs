use proptest::prelude::*;

use super::*;

const MAX: Duration = Duration::from_millis(100);

fn suspicion() -> Suspicion {
    Suspicion::between(MAX / 2, MAX)
}

fn at(ms: u64) -> MonotonicTime {
    MonotonicTime::new(Duration::from_millis(ms))
}

/// Heard at each of so many times, `gap_ms` apart, and the time of the last.
fn heard_every(silence: &mut Silence, gap_ms: u64, from_ms: u64, count: u64) -> u64 {
    let times = (1..=count).map(|number| from_ms + number * gap_ms);
    times.inspect(|&ms| silence.heard(at(ms))).last().unwrap_or(from_ms)
}

#[test]
fn the_other_replica_is_silent_after_the_suspicion_time_and_not_before() {
    let mut silence = Silence::new(Suspicion::between(MAX, MAX), at(1000));
    for ms in [1000, 1025, 1050, 1075] {
        assert_eq!(silence.look(at(ms)), Look::For(MAX / 4));
    }
    assert_eq!(silence.look(at(1100)), Look::For(WAIT_MIN));
    assert_eq!(silence.look(at(1101)), Look::Last);
    silence.heard(at(1101));
    assert_eq!(silence.look(at(1101)), Look::For(MAX / 4));
    assert_eq!(silence.patience(), MAX);
}

#[test]
fn the_suspicion_time_follows_the_longest_gap_within_its_bounds() {
    let mut silence = Silence::new(suspicion(), at(0));
    // Nothing is made of the first gaps.
    let mut ms = heard_every(&mut silence, 5, 0, 600);
    assert_eq!((ms, silence.suspicion_time(at(ms))), (3000, MAX));
    ms = heard_every(&mut silence, 5, ms, 60);
    assert_eq!(silence.suspicion_time(at(ms)), MAX / 2);
    // One long gap counts at once, and for long.
    silence.heard(at(ms + 25));
    assert_eq!(silence.suspicion_time(at(ms + 25)), Duration::from_millis(75));
    silence.heard(at(ms + 25 + 60));
    assert_eq!((silence.suspicion_time(at(ms + 85)), silence.longest_gap), (MAX, Duration::from_millis(60)));
    ms = heard_every(&mut silence, 5, ms + 85, 9_000);
    assert_eq!(silence.suspicion_time(at(ms)), MAX);
    // In the end it is forgotten, and not all at once with the rest.
    ms = heard_every(&mut silence, 20, ms, 20_000);
    assert_eq!(silence.suspicion_time(at(ms)), Duration::from_millis(60));
}

#[test]
fn a_link_that_has_always_been_quick_is_suspected_sooner() {
    let mut silence = Silence::new(suspicion(), at(0));
    let ms = heard_every(&mut silence, 10, 0, 1000);
    let mut looks = (0..).map(|more| ms + more);
    let suspected = looks.find(|&ms| {
        silence.wait_until = None;
        silence.look(at(ms)) == Look::Last
    });
    assert_eq!(suspected, Some(ms + 51));
}

#[test]
fn time_in_which_the_listener_did_not_run_is_no_silence() {
    let mut silence = Silence::new(Suspicion::between(MAX, MAX), at(0));
    assert_eq!(silence.look(at(0)), Look::For(MAX / 4));
    // It was to look at 25.
    assert_eq!(silence.look(at(85)), Look::For(MAX / 4));
    assert_eq!(silence.patience(), Duration::from_millis(160));
    // That is bounded: what always comes late does come to an end.
    assert_eq!(silence.look(at(300)), Look::Last);
    assert_eq!(silence.patience(), 2 * MAX);
    // Nor is it a gap of the link's.
    let mut silence = Silence::new(suspicion(), at(0));
    let ms = heard_every(&mut silence, 10, 0, 1000);
    assert!(matches!(silence.look(at(ms)), Look::For(_)));
    assert!(matches!(silence.look(at(ms + 80)), Look::For(_)));
    silence.heard(at(ms + 80));
    assert_eq!(silence.suspicion_time(at(ms + 80)), Duration::from_millis(75));
}

#[test]
fn what_was_promised_is_kept_though_the_suspicion_time_falls() {
    let mut silence = Silence::new(suspicion(), at(0));
    let ms = heard_every(&mut silence, 5, 0, 639);
    assert_eq!((ms, silence.patience()), (3195, MAX));
    silence.heard(at(3200));
    assert_eq!((silence.suspicion_time(at(3200)), silence.patience()), (MAX / 2, Duration::from_millis(95)));
    assert!(matches!(silence.look(at(3295)), Look::For(_)));
}

proptest! {
    /// A primary that counts on what it was told releases nothing after its secondary has taken over.
    #[test]
    fn what_was_promised_is_kept(steps in prop::collection::vec((any::<bool>(), 0u64..90), 1..400), min in 10u64..=100) {
        let mut silence = Silence::new(Suspicion::between(Duration::from_millis(min), MAX), at(0));
        let (mut ms, mut promised) = (0, at(0));
        for (is_message, wait) in steps {
            // Mostly short, so that the suspicion time falls.
            ms += if wait < 88 { wait / 8 } else { wait };
            if is_message {
                silence.heard(at(ms));
                prop_assert!(silence.patience() >= Duration::from_millis(min));
                promised = promised.max(at(ms) + silence.patience());
            } else if silence.look(at(ms)) == Look::Last {
                prop_assert!(at(ms) > promised);
            }
        }
    }
}
