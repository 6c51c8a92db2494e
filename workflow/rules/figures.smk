# Figures: one module each, drawn from tables.
for number in figures:

    rule:
        name:
            f"fig{number}"
        input:
            **figure_tables(number),
        output:
            svg=report(
                f"{root}/figures/fig{number}.svg",
                caption=f"../report/fig{number}.rst",
                category="Figures",
                labels={"figure": f"Figure {number}"},
            ),
            pdf=f"{root}/figures/fig{number}.pdf",
            png=f"{root}/figures/fig{number}.png",
        log:
            f"{root}/logs/figures/fig{number}.log",
        benchmark:
            f"{root}/benchmarks/figures/fig{number}.tsv"
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=4000,
            runtime=15,
        params:
            **stage(partial(stages.figure, number)),
            module=f"figures.fig{number}",
            tables=figure_options,
        shell:
            "python -m perfmis {params.module} --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " {params.tables} --output {output.pdf} > {log} 2>&1"
