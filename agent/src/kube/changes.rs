//! From one state to the next: which changes are worth an Event. Pure.

use podspan_kubernetes::crd::{PeerClusterStatus, PeerState};

use super::report::READY;

/// What changed, as an Event tells it: whether it is a warning, the reason, the note.
pub type Change = (bool, &'static str, String);

fn ready(status: &PeerClusterStatus) -> (&str, &str) {
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY);
    ready.map_or(("", ""), |condition| (condition.reason.as_str(), condition.message.as_str()))
}

/// What changed with a peer; `before` is none if the API server knew nothing of it.
#[must_use]
pub fn peer(name: &str, before: Option<&PeerClusterStatus>, now: &PeerClusterStatus) -> Option<Change> {
    let (reason, message) = ready(now);
    let was = before.and_then(|before| before.state);
    let was_connecting = before.is_some_and(|before| ready(before).0 == "Connecting");
    let without_gateway = before.is_some_and(|before| ready(before).0 == "NoGateway");
    match (was, now.state?) {
        _ if reason == "NoGateway" && !without_gateway => {
            Some((true, "PeerWithoutGateway", format!("cluster {name} cannot be reached: {message}")))
        }
        (None, PeerState::Disconnected) => {
            Some((false, "PeerJoined", format!("cluster {name} has joined: {message}")))
        }
        (None, _) => Some((false, "PeerConnected", format!("cluster {name} is connected: {message}"))),
        (Some(PeerState::Disconnected), PeerState::Connected | PeerState::Degraded) if was_connecting => {
            Some((false, "PeerConnected", format!("cluster {name} is connected: {message}")))
        }
        (Some(PeerState::Disconnected), PeerState::Connected | PeerState::Degraded) => {
            Some((false, "PeerBack", format!("cluster {name} is reached again: {message}")))
        }
        (Some(PeerState::Connected | PeerState::Degraded), PeerState::Disconnected) => {
            Some((true, "PeerLost", format!("cluster {name} cannot be reached: {message}")))
        }
        (Some(PeerState::Disconnected), PeerState::Disconnected)
            if was_connecting && reason == "NoGatewayAnswers" =>
        {
            Some((true, "PeerLost", format!("cluster {name} cannot be reached: {message}")))
        }
        (Some(PeerState::Connected), PeerState::Degraded) => Some((
            true,
            "PeerDegraded",
            format!("cluster {name} is reached by some gateways only: {message}"),
        )),
        (Some(PeerState::Degraded), PeerState::Connected) => {
            Some((false, "PeerWhole", format!("cluster {name}: {message}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use k8s_openapi::jiff::Timestamp;

    fn status(state: PeerState, reason: &str) -> PeerClusterStatus {
        let condition = Condition {
            type_: READY.into(),
            status: "True".into(),
            reason: reason.into(),
            message: "why".into(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        PeerClusterStatus { state: Some(state), conditions: vec![condition], ..PeerClusterStatus::default() }
    }

    #[test]
    fn changes_in_words() {
        use PeerState::{Connected, Degraded, Disconnected};
        let connected = status(Connected, "AllGatewaysUp");
        let degraded = status(Degraded, "SomeGatewaysDown");
        let connecting = status(Disconnected, "Connecting");
        let lost = status(Disconnected, "NoGatewayAnswers");
        let headless = status(Disconnected, "NoGateway");
        for (before, now, expected) in [
            (None, &connecting, Some((false, "PeerJoined"))),
            (None, &connected, Some((false, "PeerConnected"))),
            (None, &headless, Some((true, "PeerWithoutGateway"))),
            (Some(&connecting), &connected, Some((false, "PeerConnected"))),
            (Some(&connecting), &lost, Some((true, "PeerLost"))),
            (Some(&connected), &lost, Some((true, "PeerLost"))),
            (Some(&connected), &connected, None),
            (Some(&connected), &degraded, Some((true, "PeerDegraded"))),
            (Some(&degraded), &connected, Some((false, "PeerWhole"))),
            (Some(&lost), &lost, None),
            (Some(&lost), &degraded, Some((false, "PeerBack"))),
            (Some(&connected), &headless, Some((true, "PeerWithoutGateway"))),
            (Some(&headless), &headless, None),
        ] {
            let change = peer("beta", before, now);
            assert_eq!(change.as_ref().map(|(w, r, _)| (*w, *r)), expected, "{before:?} -> {now:?}");
            assert!(change.is_none_or(|(_, _, note)| note.contains("beta") && note.contains("why")));
        }
    }
}
