//! pensive, through its public face.

use std::path::Path;
use std::time::Instant;

use pensive::Model;
use pensive::api::measure::{SpeedTest, Stopwatch};

pub struct Pensive {
    stopwatch: Stopwatch,
    load_seconds: f64,
}

impl Pensive {
    pub fn load(path: &Path, threads: usize, context: usize) -> Self {
        let began = Instant::now();
        let name = path.to_str().expect("the path is UTF-8");
        let model =
            Model::builder(name).threads(threads).context(context).load().expect("pensive loads the model");
        let mut stopwatch = Stopwatch::new(&model);
        let one = SpeedTest::of_prompt(1, 0);
        stopwatch.run(one).expect("one token");
        let load_seconds = began.elapsed().as_secs_f64();
        let warm_up = SpeedTest::of_generation(16, 0);
        stopwatch.run(warm_up).expect("the steps that put the weights in place");
        Pensive { stopwatch, load_seconds }
    }
}

impl super::Peer for Pensive {
    fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    fn run(&mut self, depth: usize, prompt: usize, generate: usize) -> f64 {
        self.stopwatch.run(SpeedTest { prompt, generate, depth, sequences: 1 }).expect("the test runs")
    }
}
