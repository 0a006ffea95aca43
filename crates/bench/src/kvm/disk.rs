//! What fio does in the guest.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::agent::Agent;
use super::scene::DATA_BYTES;

/// A way to use a disk.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// fio's options beside those that all jobs have.
    options: &'static str,
    /// Whether fio's figures for reads count, or those for writes.
    reads: bool,
}

/// 256 KiB at a time in order, 4 requests under way.
pub const SEQUENTIAL_READ: Job = Job { options: "--rw=read --bs=256k --ioengine=libaio --iodepth=4", reads: true };
/// The same, written.
pub const SEQUENTIAL_WRITE: Job = Job { options: "--rw=write --bs=256k --ioengine=libaio --iodepth=4", reads: false };
/// 4 KiB at a time anywhere, 16 requests under way.
pub const RANDOM_READ: Job = Job { options: "--rw=randread --bs=4k --ioengine=libaio --iodepth=16", reads: true };
/// The same, written.
pub const RANDOM_WRITE: Job = Job { options: "--rw=randwrite --bs=4k --ioengine=libaio --iodepth=16", reads: false };
/// 4 KiB anywhere, each followed by fsync(2), one at a time.
pub const SYNCED_WRITE: Job = Job { options: "--rw=randwrite --bs=4k --ioengine=psync --fsync=1", reads: false };

impl Job {
    /// Has fio do it for a while on the guest's second disk, past the guest's page cache. Returns the requests in a second.
    pub fn run(self, agent: Agent, duration: Duration) -> Result<f64> {
        let script = format!(
            "for disk in /sys/block/vd?; do \
             [ $(($(cat $disk/size) * 512)) = {DATA_BYTES} ] && file=/dev/${{disk##*/}}; done\n\
             exec fio --name=bench --filename=$file --direct=1 --time_based --runtime={} --randseed=1 \
             --output-format=json {} 2>&1\n",
            duration.as_secs().max(1),
            self.options
        );
        let text = agent.run(&script)?;
        self.rate(&text).with_context(|| format!("fio says {}", text.trim()))
    }

    /// What fio found, which may say something else first.
    fn rate(self, text: &str) -> Option<f64> {
        let report: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
        let job = report.get("jobs")?.get(0)?;
        if job.get("error")?.as_i64()? != 0 {
            return None;
        }
        let rate = job.get(if self.reads { "read" } else { "write" })?.get("iops")?.as_f64()?;
        (rate > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_report_is_read() {
        let text =
            "fio: warning\n{\"jobs\": [{\"error\": 0, \"read\": {\"iops\": 0.0}, \"write\": {\"iops\": 1234.5}}]}";
        assert_eq!(SYNCED_WRITE.rate(text), Some(1234.5));
        assert_eq!(RANDOM_READ.rate(text), None, "nothing was read");
        assert_eq!(SYNCED_WRITE.rate(&text.replace("\"error\": 0", "\"error\": 5")), None);
        assert_eq!(SYNCED_WRITE.rate("bash: fio: command not found"), None);
    }
}
