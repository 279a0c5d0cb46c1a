// SPDX-License-Identifier: Apache-2.0
// All layers of a decode step of 5 to 64 rows of Mamba-1 (1.4b, 2.8b: of 3 to 64, 790m,
// falcon-mamba-7b: of 2) on Hopper in one launch, whose blocks stay where they are: what they read
// never stops coming. To 128 rows: resident_tall.cu.
//
// - 64 clusters of two blocks, a block an SM, launched cooperatively. A cluster has 1/64 of the
//   channels: their rows of in_proj (x and z), convolution, share of x_proj, dt_proj, states, y.
//   Its blocks have half of in_proj's columns each, and end every other eight token rows.
// - A warp fills a ring of 6 slots (120 KB at 2.8b) with all that a block reads once, in order:
//   in_proj's weights of x, x_proj's, in_proj's of z, dt_proj's, the tokens' states, out_proj's,
//   the next layer's. None of it depends on anything in this launch, so the ring is full whenever a
//   phase begins; while it is, L2 is asked for what follows. It stops where blocks are about to
//   tell each other something, which would take 2 to 4 us longer beside it (below).
// - Two warps fetch token rows (u, most of it again for z, y: L2) by 16-byte loads once they are
//   there; two groups of four warps multiply (wgmma, 64 token rows by a group's weight rows) and do
//   all the rest but for x_proj's exchanges and the constants of the states, which a warp sees to
//   while they are busy with z.
// - It begins with the tokens' embeddings: a block makes its part of the residual and of the first
//   input as it does at a layer's end, so that the ring fills from the launch's start and no kernel
//   stands in front of it. Counters are wiped by block 0 before it counts that input, for which all
//   blocks wait; the input's own at the end, when nobody can be waiting for it.
// - Blocks wait for each other at counters (resident_counts), where somebody else's numbers are
//   needed and by those alone. A layer:
//     in_proj   rows of x; sums of half the tokens to the peer, in registers' order, a warp to a
//               warp; x stays in shared memory; the channels' share of x_proj to memory
//               the rows of z, from those columns on that are still there, and their sums to the
//               peer; beside it, by a warp:
//     parts     64 blocks     a 64th of x_proj's sums is added up
//     sums      64 blocks   delta, the states, y
//     y         16 blocks   out_proj by 16 row tiles and 8 parts of the columns: those that this
//                           group of 8 clusters has y of; sums to memory
//     shares    8 blocks    an eighth of a tile's tokens is added up: residual, next input
//     input     all         the next layer
//   All is added up in one order: a row's bits depend on nothing around it.
// - Up to 16 rows tell each other x_proj's sums and y in another way, without releases: the ring
//   stops once a layer (resident_exchanges.cuh).
// - falcon-mamba-7b (resident_shape::WIDE) has dt, B and C normed by who reads them; a cluster has
//   128 channels: slots of 16 KB, or there were room for two. Its out_proj is dealt out by 32 row
//   tiles and 4 parts of the columns: 64 rows a group of warps, as in_proj. Packed it has slots of
//   24 KB, and 16 tiles and 8 parts as other widths.
// - Nobody waits for ever: counters end the launch with an error after seconds of asking. Where
//   the card, or the part of it that a process is given, does not hold all clusters at once, other
//   kernels run (resident_room).
//
// Bytes: the weights once, states twice; through L2 a layer of 2.8b at 64 rows x_proj's shares (3
// MB), out_proj's (5 MB) and u, u again, y to every block (52 MB).
//
// Ladder, ms a step, 2.8b, fp16 states:                      H100 b16  b64    H200 b16  b64
//   medium.cu, advance_short.cu: four launches a layer            3.18  4.05       2.69  3.46
//   this, token rows by the copy engine, states from memory
//     to registers ahead of x_proj's sums                         3.07  3.96
//   + token rows by other warps, states through the ring,
//     dt in bf16                                                                   2.27  2.78
//   + slots given back after their reads (below)                  2.80  3.42       2.27  2.79
//   + token rows' stages announced by their copies, the ring
//     held up and L2 asked, as below: this kernel alone, two
//     runs, before 2.69 and 2.68                                                   2.52, 2.57
//   + z multiplied while x_proj's sums travel, their counters
//     carried by a warp, no fence behind its bulk copy: alone,
//     before 2.12 and 2.58 (b8 1.99, now 1.94)                                     2.01  2.46
//   + constants of the states asked for ahead of z, the ring held up
//     from out_proj's end until the next input is counted: alone,
//     before 2.48; whole steps 2.56 to 2.47 (b16 2.08, 2.07)                             2.41
//   + z without a stop: the carrying warp adds x_proj's shares up and
//     asks for the constants; z begins with the token rows that x
//     left; sums to the peer from registers; x_proj's sums by
//     exchanges; one poller a block: alone, before 2.02 and 2.42
//     (b8 1.85, now 1.80)                                                          1.91  2.32
//   + delta and the states made shorter (below): alone, in turns in
//     one process, before 2.03 and 2.45 (b8 1.87, now 1.82; fp32 states
//     b64 2.79, now 2.67); whole steps 2.54 to 2.45 (b16 2.09, 2.02)           1.95  2.36
//   both: whole steps, before 2.06 and 2.50 (b8 1.98, now 1.81; fp32
//     states b64 2.87, now 2.63; 370m b64 0.882, now 0.855)                     1.88  2.31
//   + no embedding, norm and wiping in front, and no copy (step.cu):
//     whole steps, before 2.30 (b8 1.81, now 1.80; 130m b64 0.435,
//     now 0.421, of which the copy 0.008)                                                2.27
//   + the convolution's ring written behind x_proj's share: alone, in
//     turns in one process, before 1.81 and 2.22 (b8 1.76, now 1.72)           1.77  2.20
//   + columns two pieces a turn, one wait for a slot's two, descriptors
//     in uniform registers: whole steps, in turns, before 2.31 (b8
//     1.83, now 1.775; b64 of 130m 0.404, now 0.397, 370m 0.831, 0.816,
//     790m 1.075, 1.037, 1.4b 1.373, 1.325)                                             2.25
//   + weights in 12 bits for up to 16 rows (resident_packed.cuh): whole
//     steps, in one run, before 1.84 (b8 1.82, now 1.68; 1.4b b8 1.083, 1.012,
//     b16 1.085, 1.002; 790m 0.831, 0.771, 0.850, 0.777)                        1.69
//   + of these nine slots of 15 KB and not six of 20, for shared memory has
//     room for 16 token rows there, not for 64: in turns, before 1.68 (b4
//     1.67, now 1.60, b8 1.69, now 1.62)                                        1.68
//   + up to 16 rows without releases (resident_exchanges.cuh): in turns,
//     before 1.665 (b4 1.59, now 1.53, b8 1.61, now 1.55; 1.4b b8 1.00, 0.89)   1.604
//   + the head's weights in 12 bits, no norm in front of it
//     (head_packed.cu): whole steps, in turns, before 1.604 (b8 1.546, now
//     1.497); b64 takes 2.22 to 2.27, before 2.24 to 2.28                       1.586
//   + a quicker ring of packed weights (fill_ring), their x and z ended
//     by four warps of a group: in turns, before 1.586 (b4 1.483, now
//     1.423, b8 1.501, 1.453)                                                   1.538
//   + out_proj's packed slots asked for by one lane: in turns, before
//     1.561 (b4 1.444, now 1.390, b8 1.467, 1.412)                              1.534
//   + the ring asks L2 ahead whatever its clock says, and is as quick for
//     bf16 weights, with a pause between two slots (large-steps.md, "Two
//     modes"): in turns, before 2.30 and 2.24 by turns (1.4b b64 1.325
//     and 1.292, now 1.277)                                                             2.207
//   + 100 KB of it under way and not 80: another card, before 2.270                     2.219
//   + slots a 26th of their bytes apart, not a 24th: a third one, before 2.262          2.238
// (In turns on one machine: rows 1 and 2 of H100, 1 and 3 of H200, and 1 and 4 at b16.) The fifth
// line with fp32 states 3.05 to 2.86, the sixth 2.92 to 2.84; 130m b64 (whole steps) 0.451 to
// 0.440. The seventh alone: 130m 0.393 to 0.385, and without the exchanges fp32 states 2.76 to
// 2.66, 1.4b 1.386 to 1.346, 790m 1.085 to 1.071. Predicted 2.1 to 2.5. H200, fourth line: b32
// 2.46, fp32 states b64 3.14 (before 3.90), 130m b64 0.46. Eight rows beside few.cu, one H200
// (states in fp16; 790m, 1.4b: fp32): 2.8b 2.26 (few 2.52), 1.4b 1.39 (1.39), 790m 1.00 (1.01),
// 130m 0.367 (0.308). Today (fp16): 2.8b 1.78 (2.53; four rows 2.55), 1.4b 1.06 to 1.08 (1.376;
// two rows 1.02, four 1.12), 790m 0.82 to 0.83 (0.95), 370m 0.676 (0.71), 130m 0.328 (0.310).
//
// What the first line's readings said: loads of a block's states queue in front of its polls (4.5
// us from the last block's arrival to the counter's opening), and the copy engine takes what it is
// asked for in order, so that token rows waited behind weights (out_proj's columns 7.6 us).
//
// Slots: an mbarrier's arrive overtakes reads of shared memory that queue behind other traffic
// (few.cu). The third line gave states' slots back right after reading them: 768 channels, 3
// layers, came to other bits in one test on an H200; on an H100 in none of 60 runs of 64 rows, so
// that this is the likely cause, not a proven one. Arrives now wait for what was read (give_back):
// on an H100 no difference in 120 such runs and in test_cuda medium at all five widths, nor in the
// whole of test_cuda on an H200.
//
// Where a layer goes (%globaltimer, sixth line, H200, us since the last block counted its input;
// 40.4 with stamps, 39.4 without): input open 0.6, x's columns 6.5, peer's sums 6.9, convolution
// 8.2, share of x_proj 9.1, stored 10.0, counted 10.5, parts open 11.3; half of z 12.6 and then 1.4
// of asking for constants, added up 15.5, counted 16.6, sums open 17.5; z 17.9, dt there 18.7,
// delta 20.2, a warp's tokens 21.4, 22.5, 24.4, 26.3, y counted 27.2, there 28.4, out_proj's
// columns 33.5, shares stored 34.3, counted 35.0, there 35.6, residual 37.5, input counted 39.7.
//
// The seventh line asks for nothing in front of a fence: fence_async() ahead of wgmma is a MEMBAR
// that waits for all loads of its thread, so that constants asked for ahead of z, or shares between
// two pieces, cost what they take to come (1 us, 1.5 us). Its timeline (as above, 35.3 with
// stamps, of a form that also asked L2 while held up): input open 1.3, x's columns 7.5, peer's sums
// 7.9, convolution 9.1, share of x_proj 10.0, stored 10.9, counted 11.4, parts open 12.9, added up
// 16.0, counted 16.1 (by a release 1.7 later), z 16.4, sums open 17.6, dt there 18.2, y
// counted 25.3, out_proj's columns 31.0, input counted 34.7.
//
// The states' phase (eighth line; stamps of it without its last step): delta takes 0.9 us and not
// 1.5, mostly shared memory's, which a warp reads once for all its tiles; tokens are done 4.7 us
// after it and not 6.1, as a loop (four tokens' code in a row, run once a layer, is fetched while
// it runs, most likely) that reads the next token's states ahead of the sums across lanes; y goes
// out once, at the end. Last, two tokens' states are stored behind y's count: the 82 KB that a
// block stores are there 1.5 us after the last token, and y's count waited for them. A layer
// without states' stores took 34.5 us (37.9).
//
// What is lost, read by a bench of this kernel alone (fourth line, 2.8b, 64 rows, fp16, H200: 41.8
// us a layer, 43.9 with stamps):
// - The ring's slots taken as they come and nothing else done: 21.0 us, 20.5 if L2 fetches lines
//   one by one and not in pairs. With 2, 3, 4, 5 slots under way 25.5, 22.9, 22.0, 21.4. From L2
//   alone (few MB for all layers) 20.2: boxes come to the SMs no faster from there than from
//   memory (a probe got more, below). Token rows beside them: 0.4 to 1 more. In a run whose rows
//   shared ten slots (40.8): 39.0 without token rows, 32.0 without weights, 27.0 without both, 35.6
//   with no waiting at counters.
// - For 11.4 us all that the ring's warp asked for is there and no slot is free.
// - in_proj's columns wait 1.9 us for weights and 6.8 for u; with six stages of token rows that are
//   announced by their own copies 6.0 and 1.2: no less.
// - From the block's barrier to its count (red.release: all stores acknowledged) 2.2 us for parts,
//   3.0 for y, 4.1 for shares, while the ring fills; 0.4 for the next input, when it is full. Held
//   up meanwhile: 1.8, 1.35, 0.9, but the next exchanges then take longer (sums 2.3, input 2.7).
//   Of 41.8: 80 KB at once, wider stores, x_proj's share by a bulk copy 40.5, + held up 39.6, + L2
//   asked 39.1. Only 20 or 40 KB at once outside of in_proj: exchanges are short, weights come late
//   (44.8, 41.4).
//
// Tried and dropped, us a layer (against): L2 always asked for six slots in front (46.7, 40.8); a
// count by each warp (43.5, 40.8); pieces of columns begun elsewhere in each cluster (41.6, 40.8);
// states of two tokens side by side (42.6, 40.8; it spills); a warp's states all to registers ahead
// of x_proj's sums (45.2, 40.5; spills); states stored from the ring by bulk copies (42.2, 42.0);
// shares, too (41.6, 41.4); sums polled in place, a mark in place of counters (41.7, 40.8, and once
// a run failed, unexplained); four polls under way (45.0, 44.8); a ring's warp of which one lane
// decides all (whole steps 2.83 ms, 2.78). Clusters of 4, 8, 16: the card holds 30, 15, 7 of them.
//
// With z put off, against 38.5: four slots of z ahead of the adding up and not five 38.1 (in whole
// steps no faster: 2.635 to 2.591 ms beside the fifth line, with five 2.659 to 2.577), three 38.2,
// six 38.8; not held up for parts 38.9, for y 39.1, for shares 38.8; two pieces of columns at once
// 39.2; 3 to 6 slots under way the same; L2 not asked ahead or 14 slots the same.
//
// All exchanges by words that tell themselves whether they are there (none is zero; places wiped by
// their readers, or by their writers a layer later), with one counter a layer that nobody waits for
// in between: the same bits in every case tried, but 46.0 us in a run where the fifth line took
// 41.2, and 50.5 with z put off. There token rows, looked at in shared memory before they were
// multiplied, came at 0.7 us a piece, and parts were there 6 us after they had been sent.
//
// What a release waits for: a probe of 128 blocks, H200, cycles of a red.release behind four
// stores: 650 alone, 790 beside L2's being asked for all that memory gives, 890 to 1,670 beside
// boxes from L2 (9.0 TB/s with two slots under way), and beside boxes from memory with 1 to 6 slots
// under way 1,830, 2,300, 4,060, 6,460, 8,370, 10,400 (2.8, 4.0, 4.2, 4.2, 4.3, 4.3 TB/s). Tried:
// - L2 asked for 6, 10, 14 slots in front all the time, two slots under way to shared memory, never
//   held up: 41.5, 41.9, 45.0 against 38.3; held up 43.0, 43.4, 46.2; one slot 42.8, 47.3, 53.1.
//   z's slots came 1 us apart. Not explained: the probe's boxes took the half of that.
// - y, the next input, shares by bulk copies, each counted by its warp without a release behind
//   cp.async.bulk.wait_group: other sums from run to run. The wait took 0.06 us behind a copy of
//   160 bytes, so most likely it ends before others see them. No faster either (without
//   shares 38.0, with them 39.0, against 37.6).
// - Shares with a tag in their lowest bits and no counter 41.9 (against 39.5), held up until the
//   next input is counted 39.2 (38.6); with that, inputs counted by tile 43.9; with both, x_proj's
//   sums with tags and L2 in front 47.6 to 51.
// - Against 37.8: one to five slots let through ahead of the next input's count 38.0, 38.2, 38.3,
//   38.6, 39.0. Tensor maps, asked for a layer ahead as they are now: 37.8 (37.6 without), but
//   38.1 (40.8) with a ring that is never held up. Eight stages of token rows and five slots 39.6
//   (39.5).
//
// What a piece of in_proj's columns takes (H200, fp16, 64 rows, cycles of a warp, of 550 with
// stamps): waits for weights and token rows 40 each if they are there, fence 19, four wgmma issued
// 158, the wait for those of the piece before 10. So the matrix units do not bound it. Tried, us a
// layer against what it was changed from, all in turns in one process:
// - Groups that divide a piece's columns and not its weight rows (token rows read once; sums added
//   up through shared memory): a group 32 of a piece's 64 40.4 (38.7); a piece of each slot's two
//   37.4 (37.0; 790m and 1.4b 22.2 (22.5), 28.7 (28.8)). The latter takes 0.36 us for a slot's two
//   pieces if all is there, but 0.6 from the fourth slot on: 36 KB at 62 bytes a ns, what L2 gives.
// - Barriers of the next piece looked at ahead of the wait for wgmma 38.7 (37.9); a look takes 80.
// - Shares of x_proj added up by the workers between two pieces of z 37.9 (37.3); by the carrying
//   warp with 20 instructions an address 38.2 (37.5).
// - The ring's copies asked for by one_lane(), without loops: 36.8 (36.4). Sooner is not better.
// - While the ring is held up, L2 asked for up to 8 slots in front: b64 37.5 (36.8), b16 29.4
//   (30.4); only for parts, y, input (parts: with 4 slots the same): b64 36.3, 36.3, 36.6 (36.3),
//   b16 29.7, 29.4, 29.7 (29.8), in another process no difference.
// - One arrive by two lanes, for a stage and a slot, the same; token rows to registers by ldmatrix
//   (absent ones not read), wgmma with them from there: whole steps b8 1.85 ms (1.82), b64 2.33
//   (2.27); groups that take every other piece with all rows, out_proj's too: 1.93 (1.80), 2.43
//   (2.27).
// Single changes: token rows kept 0.1, one poller 0.2, peer's sums from registers 0.5, exchanges
// for x_proj's sums 0.6.
//
// Tried with that, us a layer (against, same run): all four tokens' states held back 45.9 (36.7: it
// spills, and what is spilled is read behind boxes); three 40.1 (37.1: it spills); stored without
// .cs 37.8 (37.7). y by atom.exch.b128, whose answers say that it is there, and no release: 37.1
// (36.7), u so too 37.7, u alone 36.7; then the ring held up for y 37.5; let go behind the shares'
// count 38.8 (37.3), where the residual's loads take 2.6 us and not 0.9. y by boxes in place of
// cp.async 37.8 (37.7), its first six pieces sent to both of a cluster 37.4. L2 asked for 8 slots
// in front while the ring is held up, too: 37.1 (37.1), for 4 slots 37.0, but with 16 rows 30.0
// and 29.9 (30.8).
//
// More of a release: a probe as above; with nothing in front of it, it takes as long (1,240, 2,220,
// 4,090, 6,040, 7,690, 9,500 cycles beside boxes from memory with 1 to 6 slots under way, 584
// alone): it waits for the copy engine's loads. Four atom.exch.b128 with their answers take 1,130,
// 1,240, 1,390, 2,010, 2,810, 3,660 (1,080), one atom.add 495 to 1,260 (478). And six slots that L2
// was asked for before come at 4.3 TB/s (3.7 us, 5.4 from memory), where the same ones again come
// at 8.7.
//
// The layer again (H200, 2.8b, 64 rows, eighth line, 35.2 with stamps, 34.7 without; blocks differ
// by 0.7 either way): input open 1.2, x's columns 7.7, peer's sums 8.2, convolution 9.3 (8.8
// without the ring's stores), share of x_proj 10.2, stored 11.1, counted 11.5, parts open 12.7, all
// shares asked for 13.3, added up 14.6, their exchanges back 15.8, z 16.9, sums open 17.2, dt
// there 18.2, delta 19.2, tokens 23.0, y counted 24.6, there 25.8, out_proj's columns 31.0, shares
// counted 32.5, there 33.3, residual 34.1, input counted 34.6. From a mean block's numbers to when
// others have them each exchange takes 2.3 to 2.8; counters are open 0.3 to 0.5 after the last
// count, the input's 1.2, while the ring begins again. Of 13,300 cycles of x's columns (clocks read
// between) 4,200 wait for token rows, 3,600 of these in the first half, and 1,500 for weights; of
// z's 11,800 1,300 and 3,100, of out_proj's 10,400 3,200 and 3,600. What is left is 370 a piece.
// Without token rows 33.6 (34.6), without matrix instructions 33.7, without both 32.8.
//
// Tried on that, us a layer (against, same run):
// - Each cluster a word in place of the count of parts, eighths asked for as they are there: 37.8
//   (35.2; open at 16.1: a look takes 1 us behind copies that were asked for before); with it the
//   ring held up until all are asked for 37.4 to 37.8, or there 38.2. With the count, held up until
//   they are asked for: 35.8 (35.2).
// - All shares by one box: 35.8 (35.2; b16 28.5, 28.2), added up 15.2: it waits behind the ring's.
// - The ring held up until the input is open 34.7 (34.7), until six pieces of it are asked
//   for 36.1, three 35.5: x's columns then wait for weights.
// - Two slots under way at most during z 36.0 (34.7), three 34.9; two looks at a counter under way
//   35.8 (35.2); L2 asked for four slots in front while held up 35.3 (34.7; b16 27.9, 28.3).
// - The ring's inputs stored behind z 34.5 (34.7), behind x_proj's share 34.3 (kept).
// - dt, B and C to shared memory by the carrying warp: copies of 16 bytes 35.2 (35.2), two bulk
//   copies 34.7 (34.7; b16 28.0, 28.3). The latter, the inputs stored late and fewer addresses
//   (taps, inputs, y) together: 35.2 (35.2, inputs late alone 34.7; b16 28.2, 28.9, 28.2). Not
//   explained. Narrow models b64: 130m 15.5 (15.8), 370m 16.9 (17.0), 790m 21.1 (21.4), 1.4b 27.5
//   (27.6).
// - On top of that two, three pieces of u kept in registers from x to z (wgmma with token rows from
//   there, the same bits): 35.1, 35.5 (35.2; b16 28.1, 28.1, 28.2); four spill.
//
// falcon-mamba-7b, ms a step, fp16 states, one H200 (medium.cu; the bytes' time 3.4 to 3.9):
// b2 4.05 (4.90), b8 4.08 (5.02), b16 4.36 (5.19), b32 4.52 (5.60), b64 4.96 (6.44); fp32 states
// b64 5.91. Packed (resident_packed.cuh, resident_packed_rows.cuh), in turns: b2 2.92 (3.77), b8
// 3.02 (3.91), b16 3.18 (4.07), b17 3.40 (4.33), b32 3.65 (4.49), b40 4.45 (4.71), b64 4.94 (5.04).
// With six stages of token rows and five slots b8 4.26, b64 5.17 (4.16, 5.05 in that
// run); L2 asked for 16 slots in front, and for eight while the ring is held up: no difference
// beyond the run's 1%.
//
// Some launches take longer: in one process, blocks on the same SMs, the fifth line took 2.58 or
// 3.00 ms from launch to launch and the sixth 2.49 or 2.91, once 5.09 for some seconds. Most likely
// the card's cap of 700 W, at which its controller swings the clock. So compare lower quartiles.
//
// Energy (H200, 2.8b, fp16 states; large-steps.md has what it is made of), this kernel again and
// again: 16 rows 654 W and 32 rows 677 W at 1.98 GHz, 48 rows 710 W at 1.94, 64 rows 701 W at 1.91;
// there 2.286 ms where short runs take 2.259. So up to 32 rows the cap is not met, and at 64 it
// costs 1.2%. J a launch at 8 rows: 1.20 (0.22 of it idle power), 1.28 with the absent rows' places
// as other kernels leave them, 0.80 with weights from L2, 1.03 without wgmma, 1.17 without token
// rows, 1.19 without states.
// - Weights in a copy of their own (5 GB), each slot 20 KB in a row: dealt out to the blocks by
//   turn b8 1.708 ms (1.730), b16 1.794 (1.807), b64 2.211 (2.226); a block's own slots in a row
//   1.728, 1.832, 2.273. Not kept. (Both ranks' columns dealt out by turn, boxes as they are: no
//   difference within 4%.)
// - in_proj and out_proj by a power of two smaller, norm, C and D larger (the same bits), so that
//   exponents differ in fewer bits: 1.04 and 1.07 J at 8 rows (1.11, 1.09), no time at 8 or 64.
// - The ring's warp sleeping 32 ns between looks: the same.
//
// Weights in 12 bits (packed.cuh) for more rows: unpacked in the ring by four more warps they gave
// the same bits, but b8 1.91 ms (1.78), b64 2.29 (2.25); without unpacking, wrong sums, 1.63
// and 2.08. As wgmma's first operand, unpacked to registers, b8 2.21, b64 2.71. By
// resident_packed.cuh for 32 rows, token rows fetched twice for want of room, b24 2.05 (1.91), b32
// 2.13 (2.00). By resident_packed_rows.cuh b24 1.72 (1.87), b32 1.80 (1.92), which 17 to 32 rows do
// since, but b64 2.68 (2.34). large-steps.md has all four.
#include "resident_kernel.cuh"

namespace ssm {

// ---- host side

enum { LARGEST = 4096 }; // d_model of falcon-mamba-7b

// Which of a width's kernels: for any rows or RESIDENT_PACKED_ROWS; for packed weights of these, of
// 32, of any.
enum form { OF_ANY, OF_FEW, OF_FEW_PACKED, OF_32_PACKED, OF_ANY_PACKED };
static const form forms[] = {OF_ANY, OF_FEW, OF_FEW_PACKED, OF_32_PACKED, OF_ANY_PACKED};

static form form_of(const device *d, int32_t rows) {
    if (!d->weights_packed)
        return rows <= RESIDENT_PACKED_ROWS ? OF_FEW : OF_ANY;
    return rows <= RESIDENT_PACKED_ROWS ? OF_FEW_PACKED : rows <= 32 ? OF_32_PACKED : OF_ANY_PACKED;
}

// Whether they find counters and x_proj's totals, zeros between launches, where the other does.
template <class SHAPE, class OTHER> constexpr bool takes_turns_with() {
    return sizeof(resident_scratch<SHAPE>) == sizeof(resident_scratch<OTHER>) &&
           (int)resident_scratch<SHAPE>::WIPED == (int)resident_scratch<OTHER>::WIPED &&
           (int)SHAPE::X_TOTALS == (int)OTHER::X_TOTALS;
}
template <int NW, int ROWS, bool P, bool T>
constexpr bool is_form = takes_turns_with<resident_shape<NW, ROWS, P, T>,
                                          resident_shape<NW, RESIDENT_ROWS, false, false>>();

// f(kernel, shape), of another form where a width does not have this one.
template <class S, class F> static bool with_width(int d_model, form of, F f) {
#define WIDTH_OF(NW, ROWS, P, T)                                                                   \
    f(resident_kernel<resident_shape<NW, ROWS, P, T>, S, P>, resident_shape<NW, ROWS, P, T>())
#define WIDTH(NW, P, T) WIDTH_OF(NW, RESIDENT_ROWS, P, T)
    static_assert(is_form<24, 64, false, true> && is_form<32, 64, false, true>, "a scratch");
    static_assert(is_form<48, 64, true, true> && is_form<64, 64, true, true> &&
                      is_form<80, 64, true, true>,
                  "a scratch");
    static_assert(is_form<64, 32, true, false> && is_form<80, 32, true, false>, "a scratch");
    static_assert(is_form<128, 64, false, true> && is_form<128, 64, true, true> &&
                      is_form<128, 32, true, false> && is_form<128, 64, true, false>,
                  "a scratch");
    const bool few = of == OF_FEW || of == OF_FEW_PACKED;
    switch (d_model) {
    case 32 * 24:
        return few ? WIDTH(24, false, true) : WIDTH(24, false, false);
    case 32 * 32:
        return few ? WIDTH(32, false, true) : WIDTH(32, false, false);
    case 32 * 48:
        return of == OF_FEW_PACKED ? WIDTH(48, true, true) : WIDTH(48, false, false);
    case 32 * 64:
        if constexpr (sizeof(S) == 2) { // fp32 states gain nothing by it
            if (of == OF_32_PACKED)
                return WIDTH_OF(64, 32, true, false);
        }
        return of == OF_FEW_PACKED ? WIDTH(64, true, true) : WIDTH(64, false, false);
    case 32 * 80:
        return of == OF_FEW_PACKED  ? WIDTH(80, true, true)
               : of == OF_32_PACKED ? WIDTH_OF(80, 32, true, false)
                                    : WIDTH(80, false, false);
    case 32 * 128:
        return of == OF_FEW_PACKED   ? WIDTH(128, true, true)
               : of == OF_32_PACKED  ? WIDTH_OF(128, 32, true, false)
               : of == OF_ANY_PACKED ? WIDTH(128, true, false)
               : of == OF_FEW        ? WIDTH(128, false, true)
                                     : WIDTH(128, false, false);
    default:
        return false;
    }
#undef WIDTH
#undef WIDTH_OF
}

static bool resident_model_fits(const device *d) {
    const ssm_geometry &g = d->g;
    const int m = g.d_model;
    if (d->arch != 90 || d->weight_type != SSM_DTYPE_BF16 || g.kind != SSM_BLOCK_MAMBA ||
        d->n_sms < RESIDENT_BLOCKS || (size_t)RESIDENT_SHARED + 1024 > d->shared_sm)
        return false;
    return (m == 768 || m == 1024 || m == 1536 || m == 2048 || m == 2560 || m == LARGEST) &&
           g.d_inner == 2 * m && g.dt_rank == m / 16 && g.d_state == 16 && g.d_conv >= 2 &&
           g.d_conv <= 4 && (!g.bc_dt_norm || m == LARGEST) && g.n_layers <= RESIDENT_LAYERS;
}

template <class S> static bool holds_all(const device *d) {
    auto holds = [&](auto kernel, auto shape) {
        return resident_launch(d, decltype(shape)::BYTES).most(kernel) >= RESIDENT_CLUSTERS;
    };
    for (form of : forms) {
        if (!with_width<S>(d->g.d_model, of, holds))
            return false;
    }
    return true;
}

bool resident_room(const device *d) {
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        return resident_heads_room(d);
    return resident_model_fits(d) &&
           with_state_type(d->state_type, [&](auto s) { return holds_all<decltype(s)>(d); });
}

// Rows from which on it is faster than the kernels of few rows, ms a step, so and by these (H200,
// fp16 states): 130m b4 0.284 and 0.260, b8 0.303 and 0.322 *; 370m b4 0.594 and 0.525; packed 790m
// b2 0.674 and 0.681, 1.4b b2 0.845 and 0.805, b4 0.894 and 0.981 *; 2.8b b2 1.475 and 1.456.
// * before head_packed.cu.
static int32_t fewest(const device *d) {
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        return resident_heads_fewest(d);
    switch (d->g.d_model) {
    case 1536:
        return d->weights_packed ? 2 : 5;
    case 2048:
        return d->weights_packed ? 3 : 5;
    case 2560:
        return 3;
    case LARGEST:
        return 2;
    default:
        return 5;
    }
}

int32_t resident_rows(const device *d, int32_t n) {
    const int32_t rows = (n + 7) / 8 * 8;
    return n >= fewest(d) && resident_fits(d, rows) ? rows : 0;
}

bool resident_fits(const device *d, int32_t n) {
    const int32_t most = d->g.kind == SSM_BLOCK_MAMBA2 ? resident_heads_most(d)
                         : d->resident_tall_room       ? (int32_t)RESIDENT_TALL_ROWS
                                                       : (int32_t)RESIDENT_ROWS;
    if (!d->resident_room || n < fewest(d) || n > most || n % 8 != 0)
        return false;
    for (int i = 0; i < d->g.n_layers; i++) {
        if (d->layers[i].in_bias || d->layers[i].out_bias)
            return false;
    }
    return true;
}

size_t resident_bytes(const device *d) {
    if (!d->resident_room)
        return 0;
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        return resident_heads_bytes(d);
    size_t bytes = 0; // the forms take turns at it
    for (form of : forms)
        with_width<float>(d->g.d_model, of, [&](auto, auto shape) {
            const size_t these = resident_shape_bytes<decltype(shape)>();
            bytes = these > bytes ? these : bytes;
            return true;
        });
    return bytes;
}

cudaError_t resident_layers(device *d, const batch &b, row_squares *left) {
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        return resident_heads_layers(d, b, left);
    if (b.n > RESIDENT_ROWS)
        return resident_tall_layers(d, b, left);
    const form of = form_of(d, b.n);
    return with_state_type(d->state_type, [&](auto s) {
        return resident_run(d, b, d->resident, left,
                            [&](auto f) { return with_width<decltype(s)>(d->g.d_model, of, f); });
    });
}

} // namespace ssm
