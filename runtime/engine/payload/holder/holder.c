/* holder: the first process of a PID namespace that the containers of a Pod
 * share. It lets the kernel reap orphans and sleeps. As the namespace's init it
 * is immune to every signal from within; SIGKILL from outside ends the namespace.
 *
 * Two system calls and no libc: one page of memory a Pod. */

#if defined(__x86_64__)
enum { RT_SIGACTION = 13, PPOLL = 271 };
static long call(long n, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { RT_SIGACTION = 134, PPOLL = 73 };
static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#elif defined(__arm__)
enum { RT_SIGACTION = 174, PPOLL = 336 };
static long call(long n, long a, long b, long c, long d)
{
	register long r7 __asm__("r7") = n;
	register long r0 __asm__("r0") = a;
	register long r1 __asm__("r1") = b;
	register long r2 __asm__("r2") = c;
	register long r3 __asm__("r3") = d;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
	return r0;
}
#else
#error "holder: no system calls known for this machine"
#endif

enum { SIGCHLD_NUMBER = 17, KERNEL_SIGSET_BYTES = 8 };

void _start(void)
{
	/* struct kernel_sigaction: handler first, SIG_IGN is 1; the rest zero.
	 * Static: on the stack it would be filled by memset, which nobody links. */
	static const unsigned long action[8] = {1};
	call(RT_SIGACTION, SIGCHLD_NUMBER, (long)action, 0, KERNEL_SIGSET_BYTES);
	for (;;)
		call(PPOLL, 0, 0, 0, 0);
}
