/* Preloaded into a process whose cpuid instructions were replaced by ud2 (x86_kernels.py): answers them, less the
   features that CPUMASK takes away.
   CPUMASK = avx512 (AVX-512 without VNNI, as Skylake-SP) | avx2 (as Haswell, Zen 1 to 3) | sse41 | none */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

static int masked; /* 0 nothing, 1 what is newer than AVX-512BW, 2 than AVX2, 3 than SSE4.2 */

static void answer(int signal_number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *at = (const uint8_t *)registers[REG_RIP];
  uint32_t a, b, c, d, leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  if (at[0] != 0x0f || at[1] != 0x0b) { /* some other illegal instruction */
    signal(SIGILL, SIG_DFL);
    return;
  }
  __cpuid_count(leaf, subleaf, a, b, c, d);
  if (leaf == 7 && subleaf == 0 && masked) {
    a = a > 1 ? 1 : a;
    b &= ~(BIT(21) | BIT(29));                                   /* IFMA, SHA */
    c &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11)); /* VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI */
    c &= ~(BIT(12) | BIT(14));                                   /* BITALG, VPOPCNTDQ */
    d &= ~(BIT(22) | BIT(23) | BIT(24) | BIT(25));               /* AMX-BF16, FP16, AMX-TILE, AMX-INT8 */
    if (masked >= 2) b &= ~(BIT(16) | BIT(17) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
    if (masked >= 3) b &= ~(BIT(3) | BIT(5) | BIT(8));           /* BMI1, AVX2, BMI2 */
  }
  if (leaf == 7 && subleaf == 1 && masked) {
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
    d &= ~(BIT(4) | BIT(5) | BIT(10));           /* AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16 */
  }
  if (leaf == 1 && masked >= 3) c &= ~(BIT(12) | BIT(26) | BIT(27) | BIT(28) | BIT(29)); /* FMA, XSAVE, AVX, F16C */
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
  const char *mask = getenv("CPUMASK");
  struct sigaction action;
  masked = !mask || !strcmp(mask, "none") ? 0 : !strcmp(mask, "avx512") ? 1 : !strcmp(mask, "avx2") ? 2 : 3;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, NULL);
}
