//! A reader of pcap files (draft-ietf-opsawg-pcap), as tcpdump writes them here: the byte order of this
//! machine, Ethernet.

use anyhow::{Context, Result, bail};

/// The packets of a file, each as it was on the wire.
pub(super) fn packets(file: &[u8]) -> Result<Vec<&[u8]>> {
    const HEADER: usize = 24;
    if file.len() < HEADER {
        bail!("the capture has no header: tcpdump wrote nothing");
    }
    // Timestamps in microseconds or nanoseconds; they are not looked at.
    if !matches!(word(file, 0)?, 0xa1b2_c3d4 | 0xa1b2_3c4d) {
        bail!("this is no pcap file of this machine's byte order");
    }
    let link_type = word(file, 20)? & 0x0fff_ffff;
    if link_type != 1 {
        bail!("the capture's link type is {link_type}, not Ethernet");
    }
    let mut packets = Vec::new();
    let mut at = HEADER;
    while at < file.len() {
        let captured = usize::try_from(word(file, at + 8)?)?;
        let original = usize::try_from(word(file, at + 12)?)?;
        if captured != original {
            bail!("a packet of {original} bytes was captured only in part ({captured} bytes)");
        }
        let data = file.get(at + 16..at + 16 + captured).context("the capture ends within a packet")?;
        packets.push(data);
        at += 16 + captured;
    }
    Ok(packets)
}

fn word(file: &[u8], at: usize) -> Result<u32> {
    let bytes = file.get(at..at + 4).context("the capture ends within a header")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lengths: &[(u32, u32)]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.extend(word.to_ne_bytes());
        }
        for (captured, original) in lengths {
            for word in [1, 2, *captured, *original] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(vec![7; *captured as usize]);
        }
        file
    }

    #[test]
    fn packets_are_read_and_broken_files_refused() {
        assert_eq!(packets(&file(&[(3, 3), (0, 0), (5, 5)])).unwrap(), [&[7; 3][..], &[], &[7; 5]]);
        assert!(packets(&file(&[(3, 9)])).is_err());
        let mut cut = file(&[(3, 3)]);
        for length in [0, 10, 23, 25, cut.len() - 1] {
            assert!(packets(&cut[..length]).is_err(), "{length}");
        }
        cut[0] ^= 1;
        assert!(packets(&cut).is_err());
    }
}
