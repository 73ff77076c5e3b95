use std::sync::atomic::AtomicU64;

use super::*;

const COUNTS: [usize; 4] = [1, 2, 3, 8];

fn pool(threads: usize) -> Pool {
    Pool::new(Some(threads)).expect("threads start")
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().unwrap_or("another payload")
}

#[test]
fn every_thread_takes_part_once_in_each_of_many_jobs() {
    for threads in COUNTS {
        let pool = pool(threads);
        let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..500 {
            pool.run(|worker| {
                assert_eq!(worker.threads, threads);
                calls[worker.index].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(calls.iter().all(|n| n.load(Ordering::Relaxed) == 500), "{threads} threads");
    }
}

#[test]
fn each_task_is_claimed_exactly_once() {
    for threads in COUNTS {
        let pool = pool(threads);
        for (count, least) in [(0, 1), (1, 1), (2, 1), (17, 4), (1000, 1), (1000, 64)] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(count, least, |task| {
                done[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {count} tasks");
        }
    }
}

#[test]
fn runs_of_tasks_grow_smaller_towards_the_end() {
    let tasks = Tasks::new(1000, 2, 2);
    let lengths: Vec<usize> = std::iter::from_fn(|| tasks.claim()).map(|run| run.len()).collect();
    assert_eq!(lengths.iter().sum::<usize>(), 1000);
    assert!(lengths.is_sorted_by(|a, b| a >= b));
    assert!(lengths[0] > 100 && lengths[lengths.len() - 1] <= 2);
}

#[test]
fn what_was_written_before_a_barrier_is_read_after_it() {
    for threads in COUNTS {
        let pool = pool(threads);
        let slots: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        for round in 1..200u64 {
            pool.run(|worker| {
                for phase in 0..3 {
                    let stamp = round * 10 + phase;
                    slots[worker.index].store(stamp, Ordering::Relaxed);
                    worker.barrier();
                    assert!(slots.iter().all(|slot| slot.load(Ordering::Relaxed) == stamp));
                    worker.barrier();
                }
            });
        }
    }
}

#[test]
fn a_panic_of_any_thread_reaches_the_caller_and_the_pool_stays_usable() {
    for threads in COUNTS {
        let pool = pool(threads);
        for culprit in 0..threads {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|worker| {
                    if worker.index == culprit {
                        resume_unwind(Box::new("the culprit's words"));
                    }
                    worker.barrier(); // would wait for ever for the culprit
                });
            }));
            assert_eq!(panic_text(&*result.expect_err("the panic comes through")), "the culprit's words");
            let sum = AtomicUsize::new(0);
            pool.run(|worker| {
                worker.barrier();
                sum.fetch_add(worker.index, Ordering::Relaxed);
                worker.barrier();
            });
            assert_eq!(sum.into_inner(), threads * (threads - 1) / 2);
        }
    }
}

#[test]
fn a_job_within_a_job_runs_on_its_caller_alone() {
    let pool = pool(3);
    let inner = AtomicUsize::new(0);
    pool.run(|_| {
        pool.run(|worker| {
            assert_eq!((worker.index, worker.threads), (0, 1));
            worker.barrier();
            inner.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(inner.into_inner(), 3);
}

#[test]
fn two_threads_may_use_one_pool_at_the_same_time() {
    let pool = pool(2);
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.for_each(10, 1, |task| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 2 * 200 * 45);
}

#[test]
fn sleeping_workers_wake_for_the_next_job() {
    for threads in COUNTS {
        let pool = pool(threads);
        let calls = AtomicUsize::new(0);
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            pool.run(|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(calls.into_inner(), 5 * threads);
    }
}

#[test]
fn without_a_wish_the_pool_has_as_many_threads_as_the_process_may_use() {
    let expected = std::thread::available_parallelism().expect("known here").get();
    assert_eq!(Pool::new(None).expect("threads start").threads(), expected);
}
