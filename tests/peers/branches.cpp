// What CppAD (-DCPPAD) or ADOL-C (-DADOLC) does in the cases that chapter 36b tells of: prints words.
#include <cstdio>
#include <vector>
#ifdef CPPAD
#include <cppad/cppad.hpp>
typedef CppAD::AD<double> Active;

static void complain(bool, int, const char *, const char *, const char *) { throw 1; }

int main()
{
    std::vector<Active> x(1, 3.0), y(1);
    CppAD::Independent(x);
    if (x[0] > 2.0) y[0] = x[0] * x[0]; else y[0] = -x[0];
    CppAD::ADFun<double> f(x, y);
    std::printf("value %g ", f.Forward(0, std::vector<double>(1, -2.0))[0]);
    std::printf("changed %zu ", f.compare_change_number());
    CppAD::ErrorHandler handler(complain);
    try {
        f.Reverse(1, std::vector<double>(2));  // one weight too many
        std::printf("nothing said\n");
    } catch (int) {
        std::printf("refused\n");
    }
}
#else
#include <adolc/adolc.h>

static void loop(short tag, int rounds)
{
    double out;
    trace_on(tag);
    {
        adouble s;
        s <<= 0.5;
        for (int i = 0; i < rounds; i++) s = s * s * 0.5;
        s >>= out;
    }
    trace_off();
}

int main()
{
    double out, point = -2.0, slope = 99.0;
    trace_on(1);
    {
        adouble x, y;
        x <<= 3.0;
        if (x > 2.0) y = x * x; else y = -x;
        y >>= out;
    }
    trace_off();
    int code = gradient(1, 1, &point, &slope);
    std::printf("code %d slope %g ", code, slope);
    size_t counts[STAT_SIZE];
    loop(2, 1000);
    tapestats(2, counts);
    std::printf("slots %zu disk %zu ", counts[NUM_MAX_LIVES], counts[OP_FILE_ACCESS]);
    loop(3, 1000000);
    tapestats(3, counts);
    std::printf("disk %zu\n", counts[OP_FILE_ACCESS]);
}
#endif
