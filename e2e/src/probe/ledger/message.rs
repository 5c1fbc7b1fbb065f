//! The datagrams of the ledger: who sent it, for whom, which one it is.

use anyhow::{Context, Result, bail};

/// By this a ledger's message is known.
const MAGIC: &[u8; 4] = b"psl1";

/// A message, or its echo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::probe) struct Message {
    /// Unique among all flows of a world.
    pub(in crate::probe) flow: u64,
    /// Counts up from 0 within the flow.
    pub(in crate::probe) number: u64,
    /// The sender.
    pub(in crate::probe) from: String,
    /// For whom it is meant.
    pub(in crate::probe) to: String,
    /// Who echoed it; empty on the way there.
    pub(in crate::probe) by: String,
}

impl Message {
    /// Whether it is a ledger's message at all.
    pub(in crate::probe) fn is_one(datagram: &[u8]) -> bool {
        datagram.starts_with(MAGIC)
    }

    pub(in crate::probe) fn write(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.flow.to_be_bytes());
        out.extend(self.number.to_be_bytes());
        for name in [&self.from, &self.to, &self.by] {
            let name = &name.as_bytes()[..name.len().min(255)];
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend(name);
        }
        out
    }

    pub(in crate::probe) fn read(datagram: &[u8]) -> Result<Self> {
        let rest = datagram.strip_prefix(MAGIC).context("no message of a ledger")?;
        let (flow, rest) = rest.split_first_chunk::<8>().context("cut off")?;
        let (number, mut rest) = rest.split_first_chunk::<8>().context("cut off")?;
        let mut name = || -> Result<String> {
            let (length, tail) = rest.split_first().context("cut off")?;
            let (name, tail) = tail.split_at_checked(usize::from(*length)).context("cut off")?;
            rest = tail;
            Ok(std::str::from_utf8(name)?.to_owned())
        };
        let (from, to, by) = (name()?, name()?, name()?);
        if !rest.is_empty() {
            bail!("{} bytes behind the message", rest.len());
        }
        Ok(Self { flow: u64::from_be_bytes(*flow), number: u64::from_be_bytes(*number), from, to, by })
    }

    /// Whether the pod `name` is whom it is meant for: it itself, or, for a service, a pod of its cluster.
    pub(in crate::probe) fn is_for(&self, name: &str) -> bool {
        match self.to.split_once("/svc-") {
            Some((cluster, _)) => name.split_once('/').is_some_and(|(mine, _)| mine == cluster),
            None => self.to == name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let message = Message {
            flow: 7,
            number: u64::MAX,
            from: "alpha/pod5".into(),
            to: "beta/svc-all".into(),
            by: String::new(),
        };
        let bytes = message.write();
        assert_eq!(Message::read(&bytes).unwrap(), message);
        for length in 0..bytes.len() {
            assert!(Message::read(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Message::read(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_message_is_for_its_pod_or_for_the_pods_of_its_service() {
        let to = |to: &str| Message { to: to.into(), ..Message::default() };
        assert!(to("beta/pod1").is_for("beta/pod1"));
        assert!(!to("beta/pod1").is_for("beta/pod11"));
        assert!(to("beta/svc-all").is_for("beta/pod3"));
        assert!(!to("beta/svc-all").is_for("gamma/pod3"));
    }
}
